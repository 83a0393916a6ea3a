// The largest of each window of channels-last images, and pixels added up where they came from. T: type of the images;
// PLACE: of the places.
typedef Wide<T>::type A;

KERNEL max_pool(const T* x, T* out, PLACE* where, long long H, long long W, long long C, long long OH, long long OW, long long KH,
                long long KW, long long sh, long long sw, long long ph, long long pw, long long dh, long long dw,
                long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long c = at % C, ow = at / C % OW, oh = at / (C * OW) % OH, n = at / (C * OW * OH);
    A best = -infinity<A>();
    long long place = -1;
    for (long long i = 0; i < KH; i++) {
        const long long h = oh * sh - ph + i * dh;
        if (h < 0 || h >= H) continue;
        for (long long j = 0; j < KW; j++) {
            const long long v = ow * sw - pw + j * dw;
            if (v < 0 || v >= W) continue;
            const A here = widen(x[((n * H + h) * W + v) * C + c]);
            if (here > best || here != here || place < 0) {
                best = here;
                place = h * W + v;
            }
        }
    }
    out[at] = narrow<T>(best);
    where[at] = (PLACE)place;
}

// A thread has one channel of one image and one of eight bands of its pixels, for whatever belongs there: no two meet, and
// sums go in the order of the places. gx holds zeros.
KERNEL scatter_pixels(const T* g, const PLACE* where, T* gx, long long pixels, long long places, long long C) {
    const long long columns = (C + 31) / 32, n = blockIdx.x / columns, c = blockIdx.x % columns * 32 + threadIdx.x;
    if (c >= C) return;
    const long long first = pixels * threadIdx.y / 8, last = pixels * (threadIdx.y + 1) / 8;
    for (long long k = 0; k < places; k++) {
        const long long from = (n * places + k) * C + c, at = where[from];
        if (at < first || at >= last) continue;
        T* to = gx + (n * pixels + at) * C + c;
        *to = narrow<T>(widen(*to) + widen(g[from]));
    }
}

// A thread has one pixel, and looks for it in the stretches of outputs that may have come from it, in their order. ends:
// for each index of each axis the first output and the end.
KERNEL gather_places(const T* g, const PLACE* where, const long long* ends, T* gx, long long D, long long H, long long W,
                     long long OD, long long OH, long long OW, long long C, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long c = at % C, pixel = at / C % (D * H * W), n = at / C / (D * H * W);
    const long long *d = ends + pixel / (H * W) * 2, *h = ends + (D + pixel / W % H) * 2, *w = ends + (D + H + pixel % W) * 2;
    A sum = 0;
    for (long long i = d[0]; i < d[1]; i++)
        for (long long j = h[0]; j < h[1]; j++)
            for (long long k = w[0]; k < w[1]; k++) {
                const long long from = (((n * OD + i) * OH + j) * OW + k) * C + c;
                if (where[from] == pixel) sum += widen(g[from]);
            }
    gx[at] = narrow<T>(sum);
}
