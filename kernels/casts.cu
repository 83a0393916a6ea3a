// From one floating point type to another. T: of what is read; U: of what is written; VECTOR: 4 elements at a time.

// With a key, numbers become half precision by rounding up or down at random: element i takes 16 bits of word i / 1024 % 4
// of block i / 4096 * 256 + i / 4 % 256 of Philox, i % 4 pieces up.
KERNEL cast(const T* x, U* out, const u64* key, long long count) {
    u64 bits[4] = {};
    if (key) {
        const Random random(key, own_index() + 1);
        for (int j = 0; j < 4; j++) bits[j] = random.word[j];
    }
    along_tile(blockIdx.x * (long long)TILE, count, [&](long long at, int j) {
        const auto from = load_some<VECTOR>(x, at, count);
        Pack<U, 4> to;
        for (int i = 0; i < 4; i++) {
            const Wide<U>::type v = widen(from[i]);
            to[i] = key ? narrow_randomly<U>(v, unsigned(bits[j] >> 16 * i)) : narrow<U>(v);
        }
        store_some<VECTOR>(out, at, count, to);
    });
}
