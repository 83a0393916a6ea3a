// Adam and AdamW over flat buffers. T: type of the parameters (or of their copy in half precision); WIDE_GRAD: gradients
// are of the type that is calculated in, else of T; VECTOR: 16 bytes at a time. The text of flat.cuh stands before this.

KERNEL adam(T* param, A* master, const G* grad, A* exp_avg, A* exp_avg_sq, A* largest, const double* scalars,
            const float* grad_scale, const int* skip, const u64* key, long long count) {
    if (skip && *skip) return;
    const A beta1 = scalars[0], one_minus_beta1 = scalars[1], beta2 = scalars[2], one_minus_beta2 = scalars[3];
    const A root_correction = scalars[6], l2 = scalars[7];
    const A eps = A(scalars[4]) * root_correction, step_size = A(scalars[5]) * root_correction;
    const A decay = scalars[8], sign = scalars[9];
    each_parameter(param, master, grad, grad_scale, key, count, [&](long long at, Pack<A, 4>& p, Pack<A, 4>& g) {
        auto m = load_some<VECTOR>(exp_avg, at, count), v = load_some<VECTOR>(exp_avg_sq, at, count);
        Pack<A, 4> second, top;
        if (largest) top = load_some<VECTOR>(largest, at, count);
        for (int i = 0; i < 4; i++) {
            g[i] *= sign;
            if (decay != 1) p[i] *= decay;
            if (l2 != 0) g[i] += l2 * p[i];
            m[i] = one_minus_beta1 < A(0.5) ? m[i] + one_minus_beta1 * (g[i] - m[i]) : g[i] - (g[i] - m[i]) * beta1;
            v[i] = v[i] * beta2 + one_minus_beta2 * g[i] * g[i];
            second[i] = v[i];
            if (largest) second[i] = top[i] = v[i] > top[i] || v[i] != v[i] ? v[i] : top[i];
            p[i] -= step_size * m[i] / (sqrt(second[i]) + eps);
        }
        store_some<VECTOR>(exp_avg, at, count, m);
        store_some<VECTOR>(exp_avg_sq, at, count, v);
        if (largest) store_some<VECTOR>(largest, at, count, top);
    });
}
