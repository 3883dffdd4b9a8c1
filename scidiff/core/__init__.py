"""The shared core: paths, solvers, guidance, sampling. torch and the standard library only; no science, no files.

Conventions, the same everywhere:

    t in [0, 1]             0 is data, 1 is the source (noise, or a degraded observation); sampling goes 1 -> 0
    alpha, sigma            scale of signal and of noise;  lambda = log(alpha / sigma);  rho = sigma / alpha
    x_t = alpha x0 + c mu + sigma eps      one-sided Gaussian path with optional centre mu
    D, E, s, v              E[x0 | x_t], E[eps | x_t], grad log p_t, dx/dt ("velocity");  "angular" = alpha E - sigma D
    State                   dict[str, Tensor], tensors [B, *shape], categories as int64 class indices

Coefficients are float64 on the CPU and applied as Python floats; states are float32 (float64 with precision=64);
categories are drawn in float64; noise is a function of (seed, sample id, stream, step, tag, component, index).
"""
