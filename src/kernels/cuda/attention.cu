// Attention of one token, over chunks of CHUNK positions, whose parts are combined later.

// Half a block, eight warps.
__device__ __forceinline__ void sync_group(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 1) : "memory"); }

// Values k and k + DIM / 2 of a head, turned to `position`.
__device__ __forceinline__ void turn(const Step& step, const float* head, int k, int position, u16& first, u16& second) {
  float sine, cosine;
  sincosf((float)position * step.inverse[k], &sine, &cosine);
  sine *= step.rotary_factor;
  cosine *= step.rotary_factor;
  const float u = __ldcg(head + k), v = __ldcg(head + k + DIM / 2);
  first = (u16)two(u * cosine - v * sine, 0.f);
  second = (u16)two(v * cosine + u * sine, 0.f);
}

// This block's share of the chunks of all sequences and heads, a group of eight warps each. `inputs`: shared memory.
__device__ __forceinline__ void attention(const Step& step, const int* lengths, int layer, u8* inputs) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int groups = 2, group = threadIdx.x / 256, in_group = threadIdx.x % 256, group_warp = in_group / 32;
  // Shared memory of a group: queries, statistics of its warps, their outputs.
  constexpr int QUERY = DIM + 8;
  constexpr int GROUP_BYTES = 8 * QUERY * 2 + 2 * 8 * 8 * 4 + 8 * GROUP * DIM * 4;
  u8* mine = inputs + group * ((GROUP_BYTES + 127) / 128 * 128);
  u16* queries = reinterpret_cast<u16*>(mine);
  float* maxima = reinterpret_cast<float*>(mine + 8 * QUERY * 2);   // [8 warps][8 heads]
  float* sums = maxima + 64;
  float* outputs = sums + 64;                                       // [8 warps][GROUP][DIM]
  const float by = 1.4426950408889634f * rsqrtf((float)DIM);
  int total = 0;
#pragma unroll
  for (int b = 0; b < BATCH; b++) total += (lengths[b] / CHUNK + 1) * KV_HEADS;
  for (int unit = blockIdx.x + group * gridDim.x; unit < total; unit += groups * gridDim.x) {
    int b = 0, rest = unit, chunks = lengths[0] / CHUNK + 1;
    while (rest >= chunks * KV_HEADS) {
      rest -= chunks * KV_HEADS;
      b++;
      chunks = lengths[b] / CHUNK + 1;
    }
    const int head = rest % KV_HEADS, chunk = rest / KV_HEADS;
    const Sequence& sequence = step.sequences[b];
    const int length = sequence.length;
    u16* keys = sequence.keys + layer * sequence.layer_stride + (u64)head * sequence.capacity * DIM;
    u16* values = sequence.values + layer * sequence.layer_stride + (u64)head * sequence.capacity * DIM;
    const float* qkv = step.qkv + (u64)b * QKV;
    sync_group(group);
    for (int i = in_group; i < 8 * DIM / 2; i += 256) {
      const int h = i / (DIM / 2), k = i % (DIM / 2);
      u16 first = 0, second = 0;
      if (h < GROUP) turn(step, qkv + (head * GROUP + h) * DIM, k, sequence.position, first, second);
      queries[h * QUERY + k] = first;
      queries[h * QUERY + k + DIM / 2] = second;
    }
    if (chunk == chunks - 1) {
      for (int i = in_group; i < DIM; i += 256) {
        if (i < DIM / 2) {
          u16* key = keys + (u64)length * DIM + i;
          turn(step, qkv + (HEADS + head) * DIM, i, sequence.position, key[0], key[DIM / 2]);
        } else {
          const float* v = qkv + (HEADS + KV_HEADS + head) * DIM;
          for (int k = 2 * (i - DIM / 2); k < 2 * (i - DIM / 2) + 2; k++) values[(u64)length * DIM + k] = (u16)two(__ldcg(v + k), 0.f);
        }
      }
    }
    sync_group(group);
    const int start = chunk * CHUNK + group_warp * 16;
    uint4 k[2][DIM / 32], rows[DIM / 64][4];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const u16* key = keys + (u64)min(start + 8 * j + g, length) * DIM + 8 * t;
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) k[j][i] = load_cg(key + 32 * i);
    }
#pragma unroll
    for (int half = 0; half < DIM / 64; half++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const int position = min(start + (r / 2) * 8 + 2 * t + r % 2, length);
        rows[half][r] = load_cg(values + (u64)position * DIM + half * 64 + 8 * g);
      }
    // Scores of 16 positions: rows are heads, columns positions.
    float c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) {
        const uint4 q = *reinterpret_cast<const uint4*>(queries + g * QUERY + 32 * i + 8 * t);
        mma(c[j], q.x, 0, q.y, 0, k[j][i].x, k[j][i].y);
        mma(c[j], q.z, 0, q.w, 0, k[j][i].z, k[j][i].w);
      }
    float largest = -INFINITE;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        c[j][e] = start + 8 * j + 2 * t + e <= length ? c[j][e] * by : -INFINITE;
        largest = fmaxf(largest, c[j][e]);
      }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    if (t == 0) maxima[group_warp * 8 + g] = largest;
    sync_group(group);
    float most = -INFINITE;
#pragma unroll
    for (int w = 0; w < 8; w++) most = fmaxf(most, maxima[w * 8 + g]);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        c[j][e] = exp2f(c[j][e] - most);
        sum += c[j][e];
      }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (t == 0) sums[group_warp * 8 + g] = sum;
    const u32 p0 = two(c[0][0], c[0][1]), p1 = two(c[1][0], c[1][1]);
#pragma unroll
    for (int half = 0; half < DIM / 64; half++) {
      float o[8][4];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const u32 r[4] = {j / 2 == 0 ? rows[half][0].x : j / 2 == 1 ? rows[half][0].y : j / 2 == 2 ? rows[half][0].z : rows[half][0].w,
                          j / 2 == 0 ? rows[half][1].x : j / 2 == 1 ? rows[half][1].y : j / 2 == 2 ? rows[half][1].z : rows[half][1].w,
                          j / 2 == 0 ? rows[half][2].x : j / 2 == 1 ? rows[half][2].y : j / 2 == 2 ? rows[half][2].z : rows[half][2].w,
                          j / 2 == 0 ? rows[half][3].x : j / 2 == 1 ? rows[half][3].y : j / 2 == 2 ? rows[half][3].z : rows[half][3].w};
        const u32 select = j % 2 ? 0x7632 : 0x5410;
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
        mma(o[j], p0, 0, p1, 0, __byte_perm(r[0], r[1], select), __byte_perm(r[2], r[3], select));
      }
      if (g < GROUP) {
        float* to = outputs + (group_warp * GROUP + g) * DIM + half * 64 + 16 * t;
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
          for (int j = 0; j < 8; j += 4)
            *reinterpret_cast<float4*>(to + 8 * e + j) = make_float4(o[j][e], o[j + 1][e], o[j + 2][e], o[j + 3][e]);
      }
    }
    sync_group(group);
    const u64 at = ((u64)b * step.chunks + chunk) * HEADS + head * GROUP;
    for (int i = in_group; i < GROUP * DIM; i += 256) {
      float value = 0;
#pragma unroll
      for (int w = 0; w < 8; w++) value += outputs[w * GROUP * DIM + i];
      step.partials[at * DIM + i] = value;
    }
    if (in_group < GROUP) {
      float m = -INFINITE, l = 0;
      for (int w = 0; w < 8; w++) {
        m = fmaxf(m, maxima[w * 8 + in_group]);
        l += sums[w * 8 + in_group];
      }
      step.statistics[at + in_group] = make_float2(m, l);
    }
  }
}

// A warp computes the weights of the chunks in the attention of head `h` of sequence `b`.
__device__ __forceinline__ void chunk_weights(const Step& step, const int* lengths, int b, int h, float* weights) {
  const int lane = threadIdx.x % 32;
  const int chunks = lengths[b] / CHUNK + 1;
  const float2* statistics = step.statistics + (u64)b * step.chunks * HEADS + h;
  float most = -INFINITE;
#pragma unroll 1
  for (int c = lane; c < chunks; c += 32) most = fmaxf(most, __ldcg(statistics + (u64)c * HEADS).x);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
  float sum = 0;
#pragma unroll 1
  for (int c = lane; c < chunks; c += 32) {
    const float2 s = __ldcg(statistics + (u64)c * HEADS);
    const float weight = exp2f(s.x - most);
    weights[c] = weight;
    sum += weight * s.y;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
#pragma unroll 1
  for (int c = lane; c < chunks; c += 32) weights[c] /= sum;
}

// Columns k and k + 1 of the output of head `h`, by the chunks' weights.
__device__ __forceinline__ float2 attended(const Step& step, const int* lengths, int b, int h, int k, const float* weights) {
  const int chunks = lengths[b] / CHUNK + 1;
  const float* from = step.partials + ((u64)b * step.chunks * HEADS + h) * DIM + k;
  float2 value = make_float2(0, 0);
#pragma unroll 4
  for (int c = 0; c < chunks; c++) {
    const float2 part = __ldcg(reinterpret_cast<const float2*>(from + (u64)c * HEADS * DIM));
    value.x += part.x * weights[c];
    value.y += part.y * weights[c];
  }
  return value;
}
