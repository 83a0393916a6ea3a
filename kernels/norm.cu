// Normalisation. T: type of the activations; BLOCK: threads of a row; VECTOR: 16 bytes at a time.
// Weights and statistics are of the type that is calculated in.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

// ------------------------------------------------------------------------------------------------ over rows (rows, K)

// Write the row of x, plus that of residual if there is one, to sum; return where the row to normalise is.
const T* added(const T* x, const T* residual, T* sum, long long start, long long K) {
    if (!residual) return x + start;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(x + start + k), r = load<PACK>(residual + start + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>(widen(v[i]) + widen(r[i]));
        store(sum + start + k, v);
    });
    return sum + start;  // a thread reads only what it wrote
}

KERNEL layer_norm(const T* x, const T* residual, const A* weight, const A* bias, T* sum, T* out, A* mean, A* rstd,
                  double eps, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K;
    const T* row = added(x, residual, sum, start, K);
    A total = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) total += widen(v[i]);
    });
    const A mu = fold<BLOCK>(total, Sum()) / K;
    A square = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) square += (widen(v[i]) - mu) * (widen(v[i]) - mu);
    });
    const A r = 1 / sqrt(fold<BLOCK>(square, Sum()) / K + A(eps));
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        auto w = load<PACK>(weight + k), b = load<PACK>(bias + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>((widen(v[i]) - mu) * r * w[i] + b[i]);
        store(out + start + k, v);
    });
    if (threadIdx.x == 0) {
        mean[m] = mu;
        rstd[m] = r;
    }
}

KERNEL rms_norm(const T* x, const T* residual, const A* weight, T* sum, T* out, A* rstd, double eps, long long rows,
                long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K;
    const T* row = added(x, residual, sum, start, K);
    A square = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) square += widen(v[i]) * widen(v[i]);
    });
    const A r = 1 / sqrt(fold<BLOCK>(square, Sum()) / K + A(eps));
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        auto w = load<PACK>(weight + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>(widen(v[i]) * r * w[i]);
        store(out + start + k, v);
    });
    if (threadIdx.x == 0) rstd[m] = r;
}

// mean is null for the root mean square. also, if it is there, is added to the gradient.
KERNEL row_norm_grad(const T* g, const T* x, const A* weight, const A* mean, const A* rstd, const T* also, T* gx,
                     long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K;
    const A mu = mean ? mean[m] : 0, r = rstd[m];
    A a = 0, b = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k), xv = load<PACK>(x + start + k);
        auto w = load<PACK>(weight + k);
        for (int i = 0; i < PACK; i++) {
            const A h = widen(gv[i]) * w[i];
            a += h;
            b += h * ((widen(xv[i]) - mu) * r);
        }
    });
    a = mean ? fold<BLOCK>(a, Sum()) / K : 0;
    b = fold<BLOCK>(b, Sum()) / K;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k), xv = load<PACK>(x + start + k);
        auto w = load<PACK>(weight + k);
        Pack<A, PACK> v;
        for (int i = 0; i < PACK; i++) v[i] = r * (widen(gv[i]) * w[i] - a - (widen(xv[i]) - mu) * r * b);
        if (also) {
            const auto more = load<PACK>(also + start + k);
            for (int i = 0; i < PACK; i++) v[i] += widen(more[i]);
        }
        for (int i = 0; i < PACK; i++) gv[i] = narrow<T>(v[i]);
        store(gx + start + k, gv);
    });
}

// ---------------------------------------------------------------------------------------- over columns (rows, columns)
// A block has 32 columns and a part of the rows; what it finds goes to (parts, columns), which merge_sums and
// merge_moments add up in float64.

KERNEL row_norm_weight_grad(const T* g, const T* x, const A* mean, const A* rstd, A* gw, A* gb, long long each,
                            long long rows, long long columns) {
    const long long c = blockIdx.x * 32 + threadIdx.x, begin = blockIdx.y * each;
    const long long end = c < columns ? (begin + each < rows ? begin + each : rows) : begin;
    const A dot = fold_column<A>(begin, end, [&](long long m) {
        return widen(g[m * columns + c]) * ((widen(x[m * columns + c]) - (mean ? mean[m] : 0)) * rstd[m]);
    });
    const A total = gb ? fold_column<A>(begin, end, [&](long long m) { return widen(g[m * columns + c]); }) : 0;
    if (threadIdx.y || c >= columns) return;
    gw[blockIdx.y * columns + c] = dot;
    if (gb) gb[blockIdx.y * columns + c] = total;
}

KERNEL channel_moments(const T* x, A* means, A* squares, long long each, long long rows, long long columns) {
    const long long c = blockIdx.x * 32 + threadIdx.x, begin = blockIdx.y * each;
    const long long last = begin + each < rows ? begin + each : rows, end = c < columns ? last : begin;
    const A mean = fold_column<A>(begin, end, [&](long long m) { return widen(x[m * columns + c]); }) / (last - begin);
    const A square = fold_column<A>(begin, end, [&](long long m) {
        const A d = widen(x[m * columns + c]) - mean;
        return d * d;
    });
    if (threadIdx.y || c >= columns) return;
    means[blockIdx.y * columns + c] = mean;
    squares[blockIdx.y * columns + c] = square;
}

// With y, the output of a ReLU, the gradient is that of its input.
KERNEL channel_grad_sums(const T* g, const T* x, const T* y, const A* mean, A* totals, A* dots, long long each,
                         long long rows, long long columns) {
    const long long c = blockIdx.x * 32 + threadIdx.x, begin = blockIdx.y * each;
    const long long end = c < columns ? (begin + each < rows ? begin + each : rows) : begin;
    const auto grad = [&](long long at) { return !y || widen(y[at]) != 0 ? widen(g[at]) : A(0); };
    const A total = fold_column<A>(begin, end, [&](long long m) { return grad(m * columns + c); });
    const A mu = c < columns ? mean[c] : 0;
    const A dot = fold_column<A>(begin, end, [&](long long m) {
        return grad(m * columns + c) * (widen(x[m * columns + c]) - mu);
    });
    if (threadIdx.y || c >= columns) return;
    totals[blockIdx.y * columns + c] = total;
    dots[blockIdx.y * columns + c] = dot;
}

KERNEL merge_sums(const A* part, double* out, long long parts, long long columns) {
    const long long c = own_index();
    if (c >= columns) return;
    double total = 0;
    for (long long i = 0; i < parts; i++) total += part[i * columns + c];
    out[c] = total;
}

// Chan, Golub and LeVeque 1979: the moments of all rows from those of their parts.
KERNEL merge_moments(const A* means, const A* squares, double* mean, double* var, long long each, long long rows,
                     long long columns) {
    const long long c = own_index();
    if (c >= columns) return;
    double mu = 0, square = 0;
    for (long long begin = 0, i = 0; begin < rows; begin += each, i++) {
        const long long count = rows - begin < each ? rows - begin : each;
        const double d = means[i * columns + c] - mu;
        mu += d * count / (begin + count);
        square += squares[i * columns + c] + d * d * begin * count / (begin + count);
    }
    mean[c] = mu;
    var[c] = square / rows;
}

KERNEL channel_affine(const T* x, const T* residual, const A* mean, const A* scale, const A* shift, T* out,
                      long long relu, long long count, long long columns) {
    const long long at = own_index() * PACK;
    if (at >= count) return;
    const long long c = at % columns;
    auto v = load<PACK>(x + at);
    const auto mu = load<PACK>(mean + c), s = load<PACK>(scale + c), t = load<PACK>(shift + c);
    Pack<A, PACK> y;
    for (int i = 0; i < PACK; i++) y[i] = (widen(v[i]) - mu[i]) * s[i] + t[i];
    if (residual) {
        const auto r = load<PACK>(residual + at);
        for (int i = 0; i < PACK; i++) y[i] += widen(r[i]);
    }
    for (int i = 0; i < PACK; i++) v[i] = narrow<T>(relu && y[i] <= 0 ? A(0) : y[i]);  // NaN stays
    store(out + at, v);
}

// With y, the output of a ReLU: its input's gradient goes to masked, which is that of what was added, if anybody asks.
KERNEL channel_grad(const T* g, const T* x, const T* y, const A* mean, const A* a, const A* b, const A* c, T* out,
                    T* masked, long long count, long long columns) {
    const long long at = own_index() * PACK;
    if (at >= count) return;
    const long long k = at % columns;
    auto gv = load<PACK>(g + at), xv = load<PACK>(x + at);
    if (y) {
        const auto yv = load<PACK>(y + at);
        for (int i = 0; i < PACK; i++)
            if (widen(yv[i]) == 0) gv[i] = narrow<T>(0);
    }
    if (masked) store(masked + at, gv);
    const auto mu = load<PACK>(mean + k), av = load<PACK>(a + k), bv = load<PACK>(b + k), cv = load<PACK>(c + k);
    for (int i = 0; i < PACK; i++)
        gv[i] = narrow<T>(widen(gv[i]) * av[i] + (widen(xv[i]) - mu[i]) * bv[i] + cv[i]);
    store(out + at, gv);
}
