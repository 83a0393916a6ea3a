// What the windows of a convolution see of channels-last images (N, H, W, C), of channels first to first + c, as a matrix
// (N * OH * OW, KH * KW * c), and back. T: type of the images; VECTOR: 16 bytes at a time.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

KERNEL im2col(const T* x, T* cols, long long H, long long W, long long C, long long first, long long c, long long OH,
              long long OW, long long KH, long long KW, long long sh, long long sw, long long ph, long long pw, long long dh,
              long long dw, long long count) {
    const long long at = own_index() * PACK;
    if (at >= count) return;
    const long long k = at % c, j = at / c % KW, i = at / (c * KW) % KH, pixel = at / (c * KW * KH);
    const long long h = pixel / OW % OH * sh - ph + i * dh, w = pixel % OW * sw - pw + j * dw, n = pixel / (OW * OH);
    Pack<T, PACK> v;
    if (h >= 0 && h < H && w >= 0 && w < W) {
        v = load<PACK>(x + ((n * H + h) * W + w) * C + first + k);
    } else {
        for (int p = 0; p < PACK; p++) v[p] = narrow<T>(0);
    }
    store(cols + at, v);
}

// A thread adds up, in one order, all that its pixels gave.
KERNEL col2im(const T* cols, T* gx, long long H, long long W, long long C, long long first, long long c, long long OH,
              long long OW, long long KH, long long KW, long long sh, long long sw, long long ph, long long pw, long long dh,
              long long dw, long long count) {
    const long long at = own_index() * PACK;
    if (at >= count) return;
    const long long k = at % c, w = at / c % W, h = at / (c * W) % H, n = at / (c * W * H);
    A sum[PACK] = {};
    for (long long i = 0; i < KH; i++) {
        const long long y = h + ph - i * dh;
        if (y < 0 || y % sh || y / sh >= OH) continue;
        for (long long j = 0; j < KW; j++) {
            const long long x = w + pw - j * dw;
            if (x < 0 || x % sw || x / sw >= OW) continue;
            const auto v = load<PACK>(cols + ((((n * OH + y / sh) * OW + x / sw) * KH + i) * KW + j) * c + k);
            for (int p = 0; p < PACK; p++) sum[p] += widen(v[p]);
        }
    }
    Pack<T, PACK> rounded;
    for (int p = 0; p < PACK; p++) rounded[p] = narrow<T>(sum[p]);
    store(gx + ((n * H + h) * W + w) * C + first + k, rounded);
}

// Convolution in which every group has one input channel and M filters: w is (C * M, KH * KW), of as many output channels.
KERNEL depthwise(const T* x, const T* w, T* out, long long H, long long W, long long C, long long OH, long long OW,
                 long long KH, long long KW, long long sh, long long sw, long long ph, long long pw, long long dh,
                 long long dw, long long M, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long O = C * M, o = at % O, ow = at / O % OW, oh = at / (O * OW) % OH, n = at / (O * OW * OH);
    A sum = 0;
    for (long long i = 0; i < KH; i++) {
        const long long h = oh * sh - ph + i * dh;
        if (h < 0 || h >= H) continue;
        for (long long j = 0; j < KW; j++) {
            const long long v = ow * sw - pw + j * dw;
            if (v < 0 || v >= W) continue;
            sum += widen(x[((n * H + h) * W + v) * C + o / M]) * widen(w[(o * KH + i) * KW + j]);
        }
    }
    out[at] = narrow<T>(sum);
}

KERNEL depthwise_input_grad(const T* g, const T* w, T* gx, long long H, long long W, long long C, long long OH, long long OW,
                            long long KH, long long KW, long long sh, long long sw, long long ph, long long pw,
                            long long dh, long long dw, long long M, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long O = C * M, c = at % C, v = at / C % W, h = at / (C * W) % H, n = at / (C * W * H);
    A sum = 0;
    for (long long i = 0; i < KH; i++) {
        const long long y = h + ph - i * dh;
        if (y < 0 || y % sh || y / sh >= OH) continue;
        for (long long j = 0; j < KW; j++) {
            const long long x = v + pw - j * dw;
            if (x < 0 || x % sw || x / sw >= OW) continue;
            for (long long o = c * M; o < c * M + M; o++)
                sum += widen(g[((n * OH + y / sh) * OW + x / sw) * O + o]) * widen(w[(o * KH + i) * KW + j]);
        }
    }
    gx[at] = narrow<T>(sum);
}

// Parts of the sums over pixels: part is (parts, KH * KW, C * M). A block has 32 output channels of one place in the window.
KERNEL depthwise_weight_grad(const T* g, const T* x, A* part, long long H, long long W, long long C, long long OH,
                             long long OW, long long KH, long long KW, long long sh, long long sw, long long ph,
                             long long pw, long long dh, long long dw, long long M, long long each, long long pixels) {
    const long long O = C * M, wide = (O + 31) / 32, tap = blockIdx.x / wide, o = blockIdx.x % wide * 32 + threadIdx.x;
    const long long i = tap / KW, j = tap % KW, begin = blockIdx.y * each;
    const long long end = o < O ? (begin + each < pixels ? begin + each : pixels) : begin;
    const A sum = fold_column<A>(begin, end, [&](long long p) {
        const long long h = p / OW % OH * sh - ph + i * dh, v = p % OW * sw - pw + j * dw, n = p / (OW * OH);
        if (h < 0 || h >= H || v < 0 || v >= W) return A(0);
        return widen(g[p * O + o]) * widen(x[((n * H + h) * W + v) * C + o / M]);
    });
    if (threadIdx.y == 0 && o < O) part[(blockIdx.y * KH * KW + tap) * O + o] = sum;
}
