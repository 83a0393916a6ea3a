// Stochastic gradient descent over flat buffers. T: type of the parameters (or of their copy in half precision);
// WIDE_GRAD: gradients are of the type that is calculated in, else of T; VECTOR: 16 bytes at a time. The text of flat.cuh
// stands before this.

KERNEL sgd(T* param, A* master, const G* grad, A* buf, const double* scalars, const float* grad_scale, const int* skip,
           const u64* key, long long count) {
    if (skip && *skip) return;
    const A lr = scalars[0], momentum = scalars[1], keep = scalars[2], add = scalars[3], weight_decay = scalars[4];
    const A sign = scalars[5];
    const bool nesterov = scalars[6] != 0;
    each_parameter(param, master, grad, grad_scale, key, count, [&](long long at, Pack<A, 4>& p, Pack<A, 4>& g) {
        Pack<A, 4> b;
        if (buf) b = load_some<VECTOR>(buf, at, count);
        for (int i = 0; i < 4; i++) {
            g[i] *= sign;
            if (weight_decay != 0) g[i] += weight_decay * p[i];
            if (buf) {
                b[i] = (keep != 0 ? b[i] * keep : A(0)) + add * g[i];  // at the first step b is of any content
                g[i] = nesterov ? g[i] + momentum * b[i] : b[i];
            }
            p[i] -= lr * g[i];
        }
        if (buf) store_some<VECTOR>(buf, at, count, b);
    });
}
