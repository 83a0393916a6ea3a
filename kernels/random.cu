// Random numbers from Philox, bit by bit those of random.py, whose coefficients stand before this text. T: their type.
typedef Wide<T>::type A;

template <int N> A polynomial(A x, const A (&c)[N]) {
    A y = x * c[N - 1] + c[N - 2];
#pragma unroll
    for (int i = N - 3; i >= 0; i--) y = y * x + c[i];
    return y;
}

inline int bits_of(float x) { return int(__float_as_uint(x)); }
inline long long bits_of(double x) { return __double_as_longlong(x); }
inline float of_bits(int x) { return __uint_as_float(unsigned(x)); }
inline double of_bits(long long x) { return __longlong_as_double(x); }

inline A log_exactly(A x) {
    constexpr int digits = sizeof(A) == 4 ? 23 : 52;
    const auto bits = bits_of(x), exponent = (bits - bits_of(ROOT_HALF)) >> digits;
    const A f = of_bits(bits - (exponent << digits)), s = (f - 1) / (f + 1);
    A y = polynomial(s * s, ATANH) * s;
    y += y;
    const A e = A(exponent);
    return e * LN2_HIGH + (e * LN2_LOW + y);
}

template <class W> A normal_of(W word) {
    const A scale = A(1) / (W(1) << (8 * sizeof(W) - 1)) / 4;
    const W odd = word | 1;
    const A q = A(W(0) - odd) * scale;
    A y;
    if (q > A(0.425)) {
        const A r = sqrt(-log_exactly(A(odd) * scale));
        y = polynomial(r - A(1.6), TAIL_ABOVE) / polynomial(r - A(1.6), TAIL_BELOW);
#ifdef FAR_TAIL
        if (r > 5) y = polynomial(r - 5, FAR_ABOVE) / polynomial(r - 5, FAR_BELOW);
#endif
    } else {
        const A r = A(0.180625) - q * q;
        y = polynomial(r, MIDDLE_ABOVE) * q / polynomial(r, MIDDLE_BELOW);
    }
    return word & 1 ? -y : y;
}

KERNEL words(const u64* key, u64* out, long long count) {
    const long long block = own_index();
    if (block * 4 >= count) return;
    const Random random(key, block + 1);
    for (int i = 0; i < 4; i++)
        if (block * 4 + i < count) out[block * 4 + i] = random.word[i];
}

KERNEL uniform(const u64* key, T* out, long long count) {
    constexpr int each = sizeof(T) == 8 ? 4 : 8;  // of one block of Philox
    const long long block = own_index();
    if (block * each >= count) return;
    const Random random(key, block + 1);
    for (int i = 0; i < each; i++) {
        const A x = sizeof(T) == 8 ? A(random.word[i % 4] >> 11) : A(random.half(i) >> (32 - DIGITS));
        if (block * each + i < count) out[block * each + i] = narrow<T>(x / (1ull << DIGITS));
    }
}

KERNEL normal(const u64* key, T* out, long long count) {
    constexpr int each = sizeof(T) == 8 ? 4 : 8;
    const long long block = own_index();
    if (block * each >= count) return;
    const Random random(key, block + 1);
    for (int i = 0; i < each; i++) {
        const A x = sizeof(T) == 8 ? normal_of(random.word[i % 4]) : normal_of(random.half(i));
        if (block * each + i < count) out[block * each + i] = narrow<T>(x);
    }
}
