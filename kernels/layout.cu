// Elements in another order, whatever they are. T: a whole number of their size.

// (batch, rows, columns) to (batch, columns, rows), by tiles of 32 x 32 that are read and written along lines.
KERNEL transpose(const T* x, T* out, long long rows, long long columns, long long tiles) {
    SHARED(T, tile, 32 * 33);  // the last column keeps a column of the tile in different banks
    const long long batch = blockIdx.x / tiles * rows * columns, at = blockIdx.x % tiles, wide = (columns + 31) / 32;
    const long long row = at / wide * 32, column = at % wide * 32;
    for (int i = threadIdx.y; i < 32; i += 8)
        if (row + i < rows && column + threadIdx.x < columns)
            tile[i * 33 + threadIdx.x] = x[batch + (row + i) * columns + column + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8)
        if (column + i < columns && row + threadIdx.x < rows)
            out[batch + (column + i) * rows + row + threadIdx.x] = tile[threadIdx.x * 33 + i];
}

// (A, B, C, D) to (A, C, B, D).
KERNEL swap_middle(const T* x, T* out, long long B, long long C, long long D, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long d = at % D, b = at / D % B, c = at / (D * B) % C, a = at / (D * B * C);
    out[at] = x[((a * B + b) * C + c) * D + d];
}
