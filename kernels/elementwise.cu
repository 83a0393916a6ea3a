// A chain of operations element by element, each array read and written once. Before this text stands what Python traced:
// INPUTS, SCALARS, OUTPUTS and body(x, s, y). T: type of all arrays; VECTOR: 16 bytes at a time.
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

// Input k repeats every p elements: it is the last axes of the result, or one number. All else may be null.
KERNEL chain(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5, T* y0, T* y1, T* y2, double s0,
             double s1, double s2, double s3, long long p0, long long p1, long long p2, long long p3, long long p4,
             long long p5, long long count) {
    const long long at = own_index() * PACK;
    if (at >= count) return;
    const T* const from[] = {x0, x1, x2, x3, x4, x5};
    T* const to[] = {y0, y1, y2};
    const long long period[] = {p0, p1, p2, p3, p4, p5};
    const A scalars[] = {A(s0), A(s1), A(s2), A(s3)};
    Pack<T, PACK> in[INPUTS], out[OUTPUTS];
#pragma unroll
    for (int k = 0; k < INPUTS; k++) {
        if (PACK > 1 && period[k] == 1) {
            for (int i = 0; i < PACK; i++) in[k][i] = from[k][0];
        } else {
            in[k] = load<PACK>(from[k] + (period[k] == count ? at : at % period[k]));
        }
    }
#pragma unroll
    for (int i = 0; i < PACK; i++) {
        A x[INPUTS], y[OUTPUTS];
        for (int k = 0; k < INPUTS; k++) x[k] = widen(in[k][i]);
        body(x, scalars, y);
        for (int k = 0; k < OUTPUTS; k++) out[k][i] = narrow<T>(y[k]);
    }
#pragma unroll
    for (int k = 0; k < OUTPUTS; k++) store(to[k] + at, out[k]);
}
