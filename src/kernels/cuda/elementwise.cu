// Fused rotary embeddings and gated activations, for which libtorch needs several passes over memory. Each step is rounded as
// by libtorch's operations. 16-bit values only; eight adjacent values per thread.

#if VALUE_TYPE != 0
struct Eight {
  float at[8];
};

__device__ __forceinline__ Eight eight(const uint4& from) {
  const u32 words[4] = {from.x, from.y, from.z, from.w};
  Eight values;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    values.at[2 * k] = low(words[k]);
    values.at[2 * k + 1] = high(words[k]);
  }
  return values;
}

__device__ __forceinline__ uint4 packed(const Eight& from) {
  u32 words[4];
#pragma unroll
  for (int k = 0; k < 4; k++) words[k] = two(from.at[2 * k], from.at[2 * k + 1]);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ float rounded(float value) { return low(two(value, 0.f)); }

__device__ __forceinline__ Eight floats(const float* from) {
  const float4 first = reinterpret_cast<const float4*>(from)[0], second = reinterpret_cast<const float4*>(from)[1];
  return {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
}

// The first `turned` columns of each row are heads of `2 * half` columns, rotated by the row's angle (`sign` -1: back); the
// others are copied. All counts are of eights. cos, sin: [rows, 2 * half]. `to` may be `from`.
extern "C" __global__ void __launch_bounds__(256) rotate(
    const uint4* from, uint4* to, const float* cos, const float* sin, float sign, u64 rows, int columns, int turned, int half) {
  // A head's thread takes the same eight columns of both of its halves.
  const int items = columns - turned / 2;
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  const u64 row = i / items;
  if (row >= rows) return;
  const int item = (int)(i % items);
  const u64 start = row * columns;
  if (item >= turned / 2) {
    const u64 place = start + turned + (item - turned / 2);
    if (from != to) to[place] = from[place];
    return;
  }
  const int within = item % half;
  const u64 place = start + item / half * 2 * half + within;
  const float* c = cos + (row * 2 * half + within) * 8;
  const float* s = sin + (row * 2 * half + within) * 8;
  const Eight x = eight(from[place]), y = eight(from[place + half]);
  const Eight cx = floats(c), cy = floats(c + half * 8), sx = floats(s), sy = floats(s + half * 8);
  Eight a, b;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    a.at[k] = __fsub_rn(__fmul_rn(x.at[k], cx.at[k]), __fmul_rn(y.at[k], sign * sx.at[k]));
    b.at[k] = __fadd_rn(__fmul_rn(y.at[k], cy.at[k]), __fmul_rn(x.at[k], sign * sy.at[k]));
  }
  to[place] = packed(a);
  to[place + half] = packed(b);
}

__device__ __forceinline__ float sigmoid(float x) { return __fdiv_rn(1.f, __fadd_rn(1.f, expf(-x))); }

__device__ __forceinline__ float silu(float x) { return rounded(__fdiv_rn(x, __fadd_rn(1.f, expf(-x)))); }

// y = silu(gate) * up.
extern "C" __global__ void __launch_bounds__(256) gated(const uint4* gate, const uint4* up, uint4* y, u64 n) {
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const Eight g = eight(gate[i]), u = eight(up[i]);
  Eight made;
#pragma unroll
  for (int k = 0; k < 8; k++) made.at[k] = __fmul_rn(silu(g.at[k]), u.at[k]);
  y[i] = packed(made);
}

// Gradient of silu(gate) * up -> gradients of gate and up.
extern "C" __global__ void __launch_bounds__(256) gated_backward(
    const uint4* gradient, const uint4* gate, const uint4* up, uint4* for_gate, uint4* for_up, u64 n) {
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const Eight d = eight(gradient[i]), g = eight(gate[i]), u = eight(up[i]);
  Eight by_gate, by_up;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    by_up.at[k] = __fmul_rn(d.at[k], silu(g.at[k]));
    const float part = sigmoid(g.at[k]), outer = rounded(__fmul_rn(d.at[k], u.at[k]));
    by_gate.at[k] = outer * part * (1.f + g.at[k] * (1.f - part));
  }
  for_gate[i] = packed(by_gate);
  for_up[i] = packed(by_up);
}
#endif
