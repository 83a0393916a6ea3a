// LARS and LAMB over flat buffers. T, WIDE_GRAD and VECTOR as in adam.cu; the text of flat.cuh stands before this.
// Every parameter is cut into tiles of TILE elements: tile t is [tiles[2 * t], tiles[2 * t + 1]) of the buffer, and
// belongs to parameter owner[t]; those of parameter p are first[p] to first[p + 1]. A block has a tile. Norms are folded in
// float64, in one fixed order.

// The random bits of the 4 elements from at on, 16 for each: those that each_parameter takes for them.
inline u64 rounding_bits(const u64* key, long long at) {
    const auto of = [&](long long e) { return Random(key, e / TILE * 256 + e / 4 % 256 + 1).word[e / 1024 % 4]; };
    const int shift = at % 4 * 16;
    return shift ? of(at) >> shift | of(at + 4) << (64 - shift) : of(at);
}

template <class F> void each_of_tile(const long long* tiles, T* param, A* master, const G* grad,
                                     const float* grad_scale, const u64* key, bool write, F f) {
    const long long end = tiles[2 * blockIdx.x + 1];
    along_tile(tiles[2 * blockIdx.x], end, [&](long long at, int) {
        Pack<A, 4> p, g = {};
        if (master) {
            p = load_some<VECTOR>(master, at, end);
        } else {
            const auto narrow_p = load_some<VECTOR>(param, at, end);
            for (int i = 0; i < 4; i++) p[i] = widen(narrow_p[i]);
        }
        if (grad) {
            const auto given = load_some<VECTOR>(grad, at, end);
            for (int i = 0; i < 4; i++) g[i] = grad_scale ? widen(given[i]) * *grad_scale : widen(given[i]);
        }
        f(at, end, p, g);
        if (!write) return;
        if (master) store_some<VECTOR>(master, at, end, p);
        const u64 bits = key ? rounding_bits(key, at) : 0;
        Pack<T, 4> rounded;
        for (int i = 0; i < 4; i++)
            rounded[i] = key ? narrow_randomly<T>(p[i], unsigned(bits >> 16 * i)) : narrow<T>(p[i]);
        store_some<VECTOR>(param, at, end, rounded);
    });
}

// The squares of 4 elements of which some may not be there.
template <class P> double squares(const P& v, long long at, long long end) {
    double sum = 0;
    for (int i = 0; i < 4; i++)
        if (at + i < end) sum += double(v[i]) * double(v[i]);
    return sum;
}

inline void put_squares(double* out, double ours, double theirs) {
    ours = fold<256>(ours, Sum());
    theirs = fold<256>(theirs, Sum());
    if (threadIdx.x) return;
    out[2 * blockIdx.x] = ours;
    out[2 * blockIdx.x + 1] = theirs;
}

// The direction of LAMB.
struct Lamb {
    A beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, correction1, correction2, sign;
    Lamb(const double* s)
        : beta1(s[0]), one_minus_beta1(s[1]), beta2(s[2]), one_minus_beta2(s[3]), eps(s[4]), weight_decay(s[5]),
          correction1(s[6]), correction2(s[7]), sign(s[8]) {}
    A direction(A p, A m, A v) const { return m / correction1 / (sqrt(v / correction2) + eps) + weight_decay * p; }
};

KERNEL lamb_moments(T* param, A* master, const G* grad, A* exp_avg, A* exp_avg_sq, const double* scalars,
                    const float* grad_scale, const int* skip, const long long* tiles, double* sums) {
    if (skip && *skip) return;
    const Lamb lamb(scalars);
    double ww = 0, uu = 0;
    each_of_tile(tiles, param, master, grad, grad_scale, nullptr, false, [&](long long at, long long end, auto& p, auto& g) {
        auto m = load_some<VECTOR>(exp_avg, at, end), v = load_some<VECTOR>(exp_avg_sq, at, end);
        Pack<A, 4> u;
        for (int i = 0; i < 4; i++) {
            g[i] *= lamb.sign;
            m[i] = lamb.beta1 * m[i] + lamb.one_minus_beta1 * g[i];
            v[i] = lamb.beta2 * v[i] + lamb.one_minus_beta2 * g[i] * g[i];
            u[i] = lamb.direction(p[i], m[i], v[i]);
        }
        store_some<VECTOR>(exp_avg, at, end, m);
        store_some<VECTOR>(exp_avg_sq, at, end, v);
        ww += squares(p, at, end);
        uu += squares(u, at, end);
    });
    put_squares(sums, ww, uu);
}

KERNEL lars_norms(T* param, A* master, const G* grad, const float* grad_scale, const int* skip, const long long* tiles,
                  double* sums) {
    if (skip && *skip) return;
    double ww = 0, gg = 0;
    each_of_tile(tiles, param, master, grad, grad_scale, nullptr, false, [&](long long at, long long end, auto& p, auto& g) {
        ww += squares(p, at, end);
        gg += squares(g, at, end);
    });
    put_squares(sums, ww, gg);
}

// The learning rate of each parameter: of LAMB, or with a trust coefficient that of LARS.
KERNEL rates(const double* sums, const long long* first, const double* scalars, const int* skip, A* rate, long long lars) {
    if (skip && *skip) return;
    const long long p = blockIdx.x;
    double a = 0, b = 0;
    for (long long t = first[p] + threadIdx.x; t < first[p + 1]; t += 32) {
        a += sums[2 * t];
        b += sums[2 * t + 1];
    }
    a = sqrt(fold<32>(a, Sum()));
    b = sqrt(fold<32>(b, Sum()));
    if (threadIdx.x) return;
    const double lr = lars ? scalars[0] : scalars[9];
    const double factor = lars ? scalars[3] * a / (b + scalars[2] * a) : a / b;
    rate[p] = A(lr * (a > 0 && b > 0 ? factor : 1.0));
}

KERNEL lamb_apply(T* param, A* master, const A* exp_avg, const A* exp_avg_sq, const double* scalars, const int* skip,
                  const u64* key, const long long* tiles, const int* owner, const A* rate) {
    if (skip && *skip) return;
    const Lamb lamb(scalars);
    const A r = rate[owner[blockIdx.x]];
    each_of_tile(tiles, param, master, nullptr, nullptr, key, true, [&](long long at, long long end, auto& p, auto&) {
        const auto m = load_some<VECTOR>(exp_avg, at, end), v = load_some<VECTOR>(exp_avg_sq, at, end);
        for (int i = 0; i < 4; i++) p[i] -= r * lamb.direction(p[i], m[i], v[i]);
    });
}

KERNEL lars_apply(T* param, A* master, const G* grad, A* velocity, const double* scalars, const float* grad_scale,
                  const int* skip, const u64* key, const long long* tiles, const int* owner, const A* rate) {
    if (skip && *skip) return;
    const A r = rate[owner[blockIdx.x]], keep = scalars[1], l2 = scalars[2], sign = scalars[4];
    each_of_tile(tiles, param, master, grad, grad_scale, key, true, [&](long long at, long long end, auto& p, auto& g) {
        auto v = load_some<VECTOR>(velocity, at, end);
        for (int i = 0; i < 4; i++) {
            v[i] = v[i] * keep + r * (g[i] * sign + l2 * p[i]);
            p[i] -= v[i];
        }
        store_some<VECTOR>(velocity, at, end, v);
    });
}
