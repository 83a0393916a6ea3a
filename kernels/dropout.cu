// Dropout with Philox. T: type of the activations; VECTOR: 16 bytes at a time.
typedef Wide<T>::type A;

// Element i is kept if word i of 32 bits is at least threshold. A thread has the eight elements of one block of Philox.
KERNEL dropout(const T* x, T* out, const u64* key, long long threshold, double scale, long long count) {
    const long long at = own_index() * 8;
    if (at >= count) return;
    const Random random(key, own_index() + 1);
    const A factor = widen(narrow<T>(A(scale)));
    const auto masked = [&](T v, int i) { return narrow<T>((widen(v) * A(random.half(i) >= threshold)) * factor); };
    if (VECTOR && at + 8 <= count) {
        auto v = load<8>(x + at);
        for (int i = 0; i < 8; i++) v[i] = masked(v[i], i);
        store(out + at, v);
    } else {
        for (int i = 0; i < 8; i++)
            if (at + i < count) out[at + i] = masked(x[at + i], i);
    }
}
