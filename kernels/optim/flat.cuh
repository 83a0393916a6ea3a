// What steps over flat buffers share.
typedef Wide<T>::type A;
template <bool WIDE> struct Grad {
    typedef T type;
};
template <> struct Grad<true> {
    typedef A type;
};
typedef Grad<WIDE_GRAD>::type G;

// Call f(at, p, g) for 4 parameters from at on and their gradients, times grad_scale if there is one; f changes p, which
// goes to master if there is one, and to param, rounded at random if there is a key. Element i takes 16 bits of word
// i / 1024 % 4 of block i / 4096 * 256 + i / 4 % 256 of Philox, i % 4 pieces up.
template <class F> void each_parameter(T* param, A* master, const G* grad, const float* grad_scale, const u64* key,
                                       long long count, F f) {
    u64 bits[4] = {};
    if (key) {
        const Random random(key, own_index() + 1);
        for (int j = 0; j < 4; j++) bits[j] = random.word[j];
    }
    along_tile(blockIdx.x * (long long)TILE, count, [&](long long at, int j) {
        Pack<A, 4> p, g;
        const auto given = load_some<VECTOR>(grad, at, count);
        for (int i = 0; i < 4; i++) g[i] = grad_scale ? widen(given[i]) * *grad_scale : widen(given[i]);
        if (master) {
            p = load_some<VECTOR>(master, at, count);
        } else {
            const auto narrow_p = load_some<VECTOR>(param, at, count);
            for (int i = 0; i < 4; i++) p[i] = widen(narrow_p[i]);
        }
        f(at, p, g);
        if (master) store_some<VECTOR>(master, at, count, p);
        Pack<T, 4> rounded;
        for (int i = 0; i < 4; i++)
            rounded[i] = key ? narrow_randomly<T>(p[i], unsigned(bits[j] >> 16 * i)) : narrow<T>(p[i]);
        store_some<VECTOR>(param, at, count, rounded);
    });
}
