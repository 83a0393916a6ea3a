// One time step of recurrent layers: a thread has one hidden unit of one row. T: type of all arrays.
typedef Wide<T>::type A;

inline A sigmoid(A x) {
    const A e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

KERNEL rnn_step(T* gates, const T* recurrent, T* h, long long relu, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const A v = widen(gates[at]) + widen(recurrent[at]);
    gates[at] = h[at] = narrow<T>(relu ? (v <= 0 ? A(0) : v) : tanh(v));
}

KERNEL rnn_step_grad(const T* y, const T* dh, T* d, long long relu, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const A v = widen(y[at]), g = widen(dh[at]);
    d[at] = narrow<T>(relu ? (v != 0 ? g : A(0)) : g * (1 - v * v));
}

KERNEL lstm_step(T* gates, const T* recurrent, T* c, T* h, long long count, long long H) {
    const long long at = own_index();
    if (at >= count) return;
    const long long first = at / H * 4 * H + at % H;
    const auto sum = [&](int k) { return widen(gates[first + k * H]) + widen(recurrent[first + k * H]); };
    const A i = sigmoid(sum(0)), f = sigmoid(sum(1)), g = tanh(sum(2)), o = sigmoid(sum(3));
    const A state = f * widen(c[at]) + i * g;
    gates[first] = narrow<T>(i);
    gates[first + H] = narrow<T>(f);
    gates[first + 2 * H] = narrow<T>(g);
    gates[first + 3 * H] = narrow<T>(o);
    c[at] = narrow<T>(state);
    h[at] = narrow<T>(o * tanh(state));
}

KERNEL lstm_step_grad(const T* gates, const T* c_before, const T* dh, T* dc, T* d, long long count, long long H) {
    const long long at = own_index();
    if (at >= count) return;
    const long long first = at / H * 4 * H + at % H;
    const A i = widen(gates[first]), f = widen(gates[first + H]), g = widen(gates[first + 2 * H]);
    const A o = widen(gates[first + 3 * H]), before = widen(c_before[at]), up = widen(dh[at]);
    const A t = tanh(f * before + i * g), inner = widen(dc[at]) + up * o * (1 - t * t);
    d[first] = narrow<T>(inner * g * i * (1 - i));
    d[first + H] = narrow<T>(inner * before * f * (1 - f));
    d[first + 2 * H] = narrow<T>(inner * i * (1 - g * g));
    d[first + 3 * H] = narrow<T>(up * t * o * (1 - o));
    dc[at] = narrow<T>(inner * f);
}

KERNEL gru_step(T* gates, const T* recurrent, const T* before, T* h, long long count, long long H) {
    const long long at = own_index();
    if (at >= count) return;
    const long long first = at / H * 3 * H + at % H;
    const A r = sigmoid(widen(gates[first]) + widen(recurrent[first]));
    const A z = sigmoid(widen(gates[first + H]) + widen(recurrent[first + H]));
    const A n = tanh(widen(gates[first + 2 * H]) + r * widen(recurrent[first + 2 * H]));
    gates[first] = narrow<T>(r);
    gates[first + H] = narrow<T>(z);
    gates[first + 2 * H] = narrow<T>(n);
    h[at] = narrow<T>(n + z * (widen(before[at]) - n));
}

KERNEL gru_step_grad(const T* gates, const T* product, const T* before, T* dh, T* d_input, T* d_recurrent,
                     long long count, long long H) {
    const long long at = own_index();
    if (at >= count) return;
    const long long first = at / H * 3 * H + at % H;
    const A r = widen(gates[first]), z = widen(gates[first + H]), n = widen(gates[first + 2 * H]), up = widen(dh[at]);
    const A dn = up * (1 - z) * (1 - n * n);
    d_input[first] = d_recurrent[first] = narrow<T>(dn * widen(product[at]) * r * (1 - r));
    d_input[first + H] = d_recurrent[first + H] = narrow<T>(up * (widen(before[at]) - n) * z * (1 - z));
    d_input[first + 2 * H] = narrow<T>(dn);
    d_recurrent[first + 2 * H] = narrow<T>(dn * r);
    dh[at] = narrow<T>(up * z);
}
