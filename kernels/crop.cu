// A crop of each image, mirrored or not, times scale plus shift: a thread makes one pixel, in all its channels.
// x is (N, C, H, W) with strides in elements; out is (N, OH, OW, C).
KERNEL crop_flip_normalize(const unsigned char* x, const long long* corners, const long long* flips,
                           const float* scale, const float* shift, float* out, long long C, long long H,
                           long long W, long long OH, long long OW, long long sn, long long sc, long long sh,
                           long long sw) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y;
    if (pixel >= OH * OW) return;
    const long long i = pixel / OW, j = pixel % OW;
    const long long h = corners[2 * n] + i, w = corners[2 * n + 1] + (flips[n] ? OW - 1 - j : j);
    const bool inside = h >= 0 && h < H && w >= 0 && w < W;
    const long long at = n * sn + h * sh + w * sw;
    for (long long c = 0; c < C; c++) {
        const float value = inside ? (float)x[at + c * sc] : 0.0f;
        out[(n * OH * OW + pixel) * C + c] = value * scale[c] + shift[c];
    }
}
