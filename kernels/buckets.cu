// Flat buckets of many arrays. T: type of the arrays; U: of the bucket. A block has a tile of at most 4096 elements: tiles
// holds for each the array's number, where the tile begins in it, where in the bucket, and how many elements it has.

KERNEL pack(const u64* arrays, const long long* tiles, U* flat, const float* factor) {
    const long long* tile = tiles + 4 * blockIdx.x;
    const T* from = reinterpret_cast<const T*>(arrays[tile[0]]) + tile[1];
    for (long long i = threadIdx.x; i < tile[3]; i += 256) {
        const auto v = widen(from[i]);
        flat[tile[2] + i] = narrow<U>(factor ? v * *factor : v);
    }
}

KERNEL unpack(const u64* arrays, const long long* tiles, const U* flat, const float* factor) {
    const long long* tile = tiles + 4 * blockIdx.x;
    T* to = reinterpret_cast<T*>(arrays[tile[0]]) + tile[1];
    for (long long i = threadIdx.x; i < tile[3]; i += 256) {
        const auto v = widen(flat[tile[2] + i]);
        to[i] = narrow<T>(factor ? v * *factor : v);
    }
}

// The sum of up to 8 arrays (count) along a binary tree, calculated in the wide type of T and rounded once; out may be one
// of them. Four bits of merges for each array: how many sums of the last two results are taken once it has been read.
KERNEL fold_tree(const T* p0, const T* p1, const T* p2, const T* p3, const T* p4, const T* p5, const T* p6, const T* p7,
                 U* out, long long merges, long long parts, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const T* from[8] = {p0, p1, p2, p3, p4, p5, p6, p7};
    Wide<T>::type last[8];  // results, the latest one first; they move along, so that they can stay in registers
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i >= parts) break;
#pragma unroll
        for (int k = 7; k; k--) last[k] = last[k - 1];
        last[0] = widen(from[i][at]);
        for (long long left = merges >> 4 * i & 15; left; left--) {
            last[0] = last[1] + last[0];
#pragma unroll
            for (int k = 1; k < 7; k++) last[k] = last[k + 1];
        }
    }
    out[at] = narrow<U>(Wide<U>::type(last[0]));
}
