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

// The sum of parts (parts, count) along a binary tree that splits at the largest power of two below its width, rounded at
// every node; out may be one of the parts.
KERNEL fold_tree(const U* parts, U* out, long long ranks, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    U whole[32];  // the sums of subtrees that nothing was added to yet: one for each bit of the number of leaves
    const auto sum = [](U left, U right) { return narrow<U>(widen(left) + widen(right)); };
    for (long long r = 0; r < ranks; r++) {
        U v = parts[r * count + at];
        int level = 0;
        for (; r >> level & 1; level++) v = sum(whole[level], v);
        whole[level] = v;
    }
    int level = 0;
    while (!(ranks >> level & 1)) level++;
    U v = whole[level];
    for (level++; ranks >> level; level++)
        if (ranks >> level & 1) v = sum(whole[level], v);
    out[at] = v;
}
