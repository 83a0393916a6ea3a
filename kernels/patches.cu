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
