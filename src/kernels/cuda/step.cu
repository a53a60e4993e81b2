template <int KIND> struct Tag { static constexpr int kind = KIND; };

extern "C" __global__ void __launch_bounds__(THREADS, 1) step(const __grid_constant__ Step step) {
  extern __shared__ __align__(128) u8 memory[];
  u32* table = reinterpret_cast<u32*>(memory);
  u8* ring = memory + (FORM == 0 ? 32768 : 0);
  float* acc = reinterpret_cast<float*>(ring + WARPS * STAGES * SLOT_BYTES);
  float* reduced = acc + ACC_FLOATS;                       // [2][BATCH][WARPS]
  float* factors = reduced + 2 * BATCH * WARPS;            // [BATCH]
  u8* inputs = reinterpret_cast<u8*>(factors + 32);        // activations of the stage, 16 bits; attention: its own use
  u16* xs = reinterpret_cast<u16*>(inputs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  if (FORM == 0)
    for (int i = threadIdx.x; i < 256 * 32; i += THREADS) table[i] = step.pairs[i / 32];
  // Two values of a byte of codes; each lane has a bank of its own.
  auto value = [&](u32 byte) { return table[(byte & 255) * 32 + lane]; };
  const u32 my_ring = shared_address(ring + warp * STAGES * SLOT_BYTES);
  const u8* my_slots = ring + warp * STAGES * SLOT_BYTES;
  __shared__ Share shares[KINDS];
  set_share<QKV_STAGE>(shares);
  set_share<O_STAGE>(shares);
  set_share<GATE_UP_STAGE>(shares);
  set_share<DOWN_STAGE>(shares);
  set_share<HEAD_STAGE>(shares);
  __shared__ Layer layers[LAYERS];
  for (int i = threadIdx.x; i < (int)(sizeof(Layer) / 8 * LAYERS); i += THREADS)
    reinterpret_cast<u64*>(layers)[i] = reinterpret_cast<const u64*>(step.layers)[i];
  __shared__ int lengths[BATCH], tokens[BATCH];
  if (threadIdx.x < BATCH) {
    lengths[threadIdx.x] = step.sequences[threadIdx.x].length;
    tokens[threadIdx.x] = step.sequences[threadIdx.x].token;
  }
  __syncthreads();
  Producer producer(step.head, layers, shares, my_ring);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) producer.fetch(i);
  int slot = 0;
  u32 arrivals = 0;

  // All blocks have written what others read next.
  auto barrier = [&]() {
    __syncthreads();
    arrivals += gridDim.x;
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(step.barrier) : "memory");
      u32 seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(step.barrier) : "memory");
      } while (seen < arrivals);
    }
    __syncthreads();
  };

  // Sums over the block, in fixed order: the two values of each sequence.
  auto reduce = [&](auto& sum, auto& largest) {
    constexpr int COUNT = sizeof(sum) / sizeof(float);
#pragma unroll
    for (int b = 0; b < COUNT; b++) {
#pragma unroll
      for (int d = 16; d > 0; d /= 2) {
        sum[b] += __shfl_xor_sync(0xffffffffu, sum[b], d);
        largest[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], d));
      }
      if (lane == 0) {
        reduced[b * WARPS + warp] = sum[b];
        reduced[(BATCH + b) * WARPS + warp] = largest[b];
      }
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < COUNT; b++) {
      sum[b] = 0;
      largest[b] = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        sum[b] += reduced[b * WARPS + w];
        largest[b] = fmaxf(largest[b], reduced[(BATCH + b) * WARPS + w]);
      }
    }
  };

  // The power of two that brings `largest` into f16's range; `factor` undoes it and multiplies by `by`.
  auto scale_of = [&](float largest, bool half, float by, float& factor) {
    float scale = 1.f;
    factor = by;
    if (half && largest > 0.f) {
      int e = (__float_as_int(largest) >> 23) - 127;
      e = max(-100, min(100, e - 14));
      scale = power_of_two(-e);
      factor *= power_of_two(e);
    }
    return scale;
  };

  // Two activations in the type of a stage's products. f16 is scaled by a power of two; `factors` undoes it.
  auto packed = [&](float x, float y, bool half) { return half ? two_f16(x, y) : two(x, y); };

  // Residual (`base`, or the token's embedding) + `count` parts of the previous stage -> `keep` (this block's slice) and, normed,
  // the activations.
  auto norm = [&](const float* base, const float* parts, int count, const float* weight, float* keep, bool half) {
    constexpr int PAIRS = (HIDDEN / 2 + THREADS - 1) / THREADS, MOST = SPLITS > KV_HEADS ? SPLITS : KV_HEADS;
    constexpr int MINE = GATHER ? 1 : BATCH;  // sequences of this block
    float2 values[MINE][PAIRS];
    float sum[MINE], largest[MINE];
    if (GATHER && blockIdx.x >= BATCH) return;
    const int from = GATHER ? 0 : (int)((long long)HIDDEN / 2 * blockIdx.x / gridDim.x);
    const int to = GATHER ? HIDDEN / 2 : (int)((long long)HIDDEN / 2 * (blockIdx.x + 1) / gridDim.x);
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int b = GATHER ? blockIdx.x : m;
      sum[m] = 0;
      largest[m] = 0;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        values[m][i] = make_float2(0, 0);
        if (k < HIDDEN / 2) {
          if (base == nullptr) {
            const u32 both = reinterpret_cast<const u32*>(step.embedding + (u64)tokens[b] * HIDDEN)[k];
            values[m][i] = make_float2(low(both), high(both));
          } else {
            values[m][i] = __ldcg(reinterpret_cast<const float2*>(base + b * HIDDEN) + k);
          }
        }
      }
#pragma unroll
      for (int p = 0; p < MOST; p++) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
          const int k = i * THREADS + threadIdx.x;
          if (p < count && k < HIDDEN / 2) {
            const float2 part = __ldcg(reinterpret_cast<const float2*>(parts + (u64)(p * BATCH + b) * HIDDEN) + k);
            values[m][i].x += part.x;
            values[m][i].y += part.y;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < HIDDEN / 2) {
          const float2 v = values[m][i], w = __ldg(reinterpret_cast<const float2*>(weight) + k);
          if (k >= from && k < to && keep != nullptr) reinterpret_cast<float2*>(keep + b * HIDDEN)[k] = v;
          sum[m] += v.x * v.x + v.y * v.y;
          values[m][i] = make_float2(v.x * w.x, v.y * w.y);
          largest[m] = fmaxf(largest[m], fmaxf(fabsf(v.x * w.x), fabsf(v.y * w.y)));
        }
      }
    }
    reduce(sum, largest);
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int b = GATHER ? blockIdx.x : m;
      const float by = rsqrtf(sum[m] / HIDDEN + step.eps);
      // f16 is scaled to its range, and the sums are multiplied by the norm's factor; bf16 is normed first.
      float factor;
      const float scale = scale_of(largest[m], half, half ? by : 1.f, factor) * (half ? 1.f : by);
      if (threadIdx.x == 0) (GATHER ? step.factors : factors)[b] = factor;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < HIDDEN / 2) {
          u16* to = GATHER ? step.activations + b * HIDDEN : xs + b * (HIDDEN + 8);
          reinterpret_cast<u32*>(to)[k] = packed(values[m][i].x * scale, values[m][i].y * scale, half);
        }
      }
    }
  };

  // `value(b, pair)` of WIDTH columns -> the activations.
  auto stage_values = [&](auto width, auto&& value) {
    constexpr int WIDTH = decltype(width)::kind, PAIRS = (WIDTH / 2 + THREADS - 1) / THREADS;
    float2 values[BATCH][PAIRS];
    float sum[BATCH], largest[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      sum[b] = 0;
      largest[b] = 0;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        values[b][i] = make_float2(0, 0);
        if (k < WIDTH / 2) values[b][i] = value(b, k);
        largest[b] = fmaxf(largest[b], fmaxf(fabsf(values[b][i].x), fabsf(values[b][i].y)));
      }
    }
    reduce(sum, largest);
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      float factor;
      const float scale = scale_of(largest[b], FORM == 0, 1.f, factor);
      if (threadIdx.x == 0) factors[b] = factor;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < WIDTH / 2)
          reinterpret_cast<u32*>(xs + b * (WIDTH + 8))[k] = packed(values[b][i].x * scale, values[b][i].y * scale, FORM == 0);
      }
    }
  };

  // The sums of one output row, scaled, to where the next stage reads them.
  auto finish = [&](int kind, const Layer& layer, const Share& share, int tile, int line, int b, float sum, float other) {
    const int row = tile * 16 + line;
    switch (kind) {
      case QKV_STAGE:
        step.qkv[(u64)b * QKV + row] = sum * layer.units[0] + layer.bias[row];
        break;
      case O_STAGE:
        step.o_parts[(u64)(share.split * BATCH + b) * HIDDEN + row] = sum * layer.units[1];
        break;
      case GATE_UP_STAGE: {
        const float gate = sum * layer.units[2], up = other * layer.units[2];
        step.inner[(u64)b * INTER + tile * 8 + line] = gate / (1.f + __expf(-gate)) * up;
        break;
      }
      case DOWN_STAGE:
        step.down_parts[(u64)(share.split * BATCH + b) * HIDDEN + row] = sum * layer.units[3];
        break;
      default:
        step.logits[(u64)b * VOCAB + row] = sum;
    }
  };

  // The products of a stage, by rounds of row tiles whose sums fit `acc`.
  auto products = [&](auto tag, const Layer& layer) {
    constexpr int kind = decltype(tag)::kind;
    using S = Shape<kind>;
    const Share& share = shares[kind];
    constexpr bool coded = FORM == 0 && kind != HEAD_STAGE;
    constexpr int columns = S::columns, chunks = S::chunks, stride = S::columns * (coded ? 128 : DENSE_COLUMNS) + 8;
    for (int row = 0; row < share.rows; row += share.round) {
      const int last = share.rows - row <= share.round, last_unit = share.units[last][warp + 1];
      int unit = share.units[last][warp], chunk = unit % chunks, column = chunk * columns / chunks;
      for (; unit < last_unit; unit++) {
        const int stop = (chunk + 1) * columns / chunks;
        float s[4] = {0, 0, 0, 0};
#pragma unroll 1
        for (; column < stop; column++) {
          asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
          __syncwarp();
          const uint4* data = reinterpret_cast<const uint4*>(my_slots + slot * SLOT_BYTES);
          if (coded) {
            const uint4 A = data[lane], B = data[32 + lane];
            const uint2 S = reinterpret_cast<const uint2*>(data + 64)[g];
            const u32 a[4] = {A.x, A.y, A.z, A.w}, b[4] = {B.x, B.y, B.z, B.w};
            float f[4];
            asm("{.reg .f16 a,b; mov.b32 {a,b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(f[0]), "=f"(f[1]) : "r"(S.x));
            asm("{.reg .f16 a,b; mov.b32 {a,b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(f[2]), "=f"(f[3]) : "r"(S.y));
#pragma unroll
            for (int block = 0; block < 2; block++) {
              uint4 x0 = {0, 0, 0, 0}, x1 = {0, 0, 0, 0};
              if (BATCH == 8 || g < BATCH) {
                const uint4* x = reinterpret_cast<const uint4*>(xs + g * stride + column * 128 + block * 64 + 16 * t);
                x0 = x[0];
                x1 = x[1];
              }
              const u32 v[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
              float c[4] = {0, 0, 0, 0};
#pragma unroll
              for (int j = 0; j < 4; j++) {
                const u32 p = a[block * 2 + (j >> 1)] >> (16 * (j & 1)), q = b[block * 2 + (j >> 1)] >> (16 * (j & 1));
                mma_f16(c, value(p), value(q), value(p >> 8), value(q >> 8), v[2 * j], v[2 * j + 1]);
              }
              s[0] += c[0] * f[block];
              s[1] += c[1] * f[block];
              s[2] += c[2] * f[2 + block];
              s[3] += c[3] * f[2 + block];
            }
          } else {
#pragma unroll
            for (int i = 0; i < DENSE_COLUMNS / 32; i++) {
              const uint4 p = data[2 * i * 32 + lane], q = data[(2 * i + 1) * 32 + lane];
              uint4 x = {0, 0, 0, 0};
              if (BATCH == 8 || g < BATCH) x = *reinterpret_cast<const uint4*>(xs + g * stride + column * DENSE_COLUMNS + i * 32 + 8 * t);
              mma(s, p.x, q.x, p.y, q.y, x.x, x.y);
              mma(s, p.z, q.z, p.w, q.w, x.z, x.w);
            }
          }
          __syncwarp();
          int to = slot + STAGES - 1;
          if (to >= STAGES) to -= STAGES;
          producer.fetch(to);
          if (++slot == STAGES) slot = 0;
        }
        float* out = acc + unit * 16 * BATCH;
        if (2 * t < BATCH) {
          out[2 * t * 16 + g] = s[0];
          out[2 * t * 16 + g + 8] = s[2];
        }
        if (2 * t + 1 < BATCH) {
          out[(2 * t + 1) * 16 + g] = s[1];
          out[(2 * t + 1) * 16 + g + 8] = s[3];
        }
        if (++chunk == chunks) chunk = column = 0;
      }
      __syncthreads();
      const int rows = min(share.round, share.rows - row);
      const int lines = kind == GATE_UP_STAGE ? 8 : 16;
      for (int i = threadIdx.x; i < rows * BATCH * lines; i += THREADS) {
        const int line = i & (lines - 1), rest = kind == GATE_UP_STAGE ? i >> 3 : i >> 4, b = rest % BATCH, r = rest / BATCH;
        const float* from = acc + r * chunks * 16 * BATCH + b * 16 + line;
        float sum = 0, other = 0;
#pragma unroll
        for (int c = 0; c < chunks; c++) sum += from[c * 16 * BATCH];
        if (kind == GATE_UP_STAGE) {
#pragma unroll
          for (int c = 0; c < chunks; c++) other += from[c * 16 * BATCH + 8];
        }
        finish(kind, layer, share, share.first + row + r, line, b, sum * factors[b], other * factors[b]);
      }
      if (row + share.round < share.rows) __syncthreads();
    }
  };

  const int groups = 2, group = warp / 8, in_group = threadIdx.x % 256, group_warp = warp % 8;
  auto group_sync = [&]() { asm volatile("bar.sync %0, 256;" ::"r"(group + 1) : "memory"); };

  // Values k and k + DIM / 2 of a head, turned to `position`.
  auto turn = [&](const float* head, int k, int position, u16& first, u16& second) {
    float sine, cosine;
    sincosf((float)position * step.inverse[k], &sine, &cosine);
    sine *= step.rotary_factor;
    cosine *= step.rotary_factor;
    const float u = __ldcg(head + k), v = __ldcg(head + k + DIM / 2);
    first = (u16)two(u * cosine - v * sine, 0.f);
    second = (u16)two(v * cosine + u * sine, 0.f);
  };

  auto attention = [&](int layer) {
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
      group_sync();
      for (int i = in_group; i < 8 * DIM / 2; i += 256) {
        const int h = i / (DIM / 2), k = i % (DIM / 2);
        u16 first = 0, second = 0;
        if (h < GROUP) turn(qkv + (head * GROUP + h) * DIM, k, sequence.position, first, second);
        queries[h * QUERY + k] = first;
        queries[h * QUERY + k + DIM / 2] = second;
      }
      if (chunk == chunks - 1) {
        for (int i = in_group; i < DIM; i += 256) {
          if (i < DIM / 2) {
            u16* key = keys + (u64)length * DIM + i;
            turn(qkv + (HEADS + head) * DIM, i, sequence.position, key[0], key[DIM / 2]);
          } else {
            const float* v = qkv + (HEADS + KV_HEADS + head) * DIM;
            for (int k = 2 * (i - DIM / 2); k < 2 * (i - DIM / 2) + 2; k++) values[(u64)length * DIM + k] = (u16)two(__ldcg(v + k), 0.f);
          }
        }
      }
      group_sync();
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
      group_sync();
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
      group_sync();
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
  };

  // A warp computes the weights of the chunks in the attention of head `h` of sequence `b`.
  auto chunk_weights = [&](int b, int h, float* weights) {
    const int chunks = lengths[b] / CHUNK + 1;
    const float2* statistics = step.statistics + (u64)b * step.chunks * HEADS + h;
    float most = -INFINITE;
    for (int c = lane; c < chunks; c += 32) most = fmaxf(most, __ldcg(statistics + (u64)c * HEADS).x);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
    float sum = 0;
    for (int c = lane; c < chunks; c += 32) {
      const float2 s = __ldcg(statistics + (u64)c * HEADS);
      const float weight = exp2f(s.x - most);
      weights[c] = weight;
      sum += weight * s.y;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    for (int c = lane; c < chunks; c += 32) weights[c] /= sum;
  };

  // Columns k and k + 1 of the output of head `h`, by the chunks' weights.
  auto attended = [&](int b, int h, int k, const float* weights) {
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
  };

  // Attention's outputs, each head by one warp of the grid.
  auto combine = [&]() {
    float* weights = acc + warp * step.chunks;
    for (int i = warp * gridDim.x + blockIdx.x; i < BATCH * HEADS; i += WARPS * gridDim.x) {
      const int b = i / HEADS, h = i % HEADS;
      chunk_weights(b, h, weights);
      __syncwarp();
      for (int k = 2 * lane; k < DIM; k += 64)
        *reinterpret_cast<float2*>(step.attended + (u64)i * DIM + k) = attended(b, h, k, weights);
      __syncwarp();
    }
    barrier();
  };

  // What `norm` wrote, once all blocks have met.
  auto load_activations = [&]() {
    barrier();
    constexpr int EIGHTS = HIDDEN / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < BATCH * EIGHTS; i += THREADS) {
      const int b = i / EIGHTS, k = i % EIGHTS;
      *reinterpret_cast<uint4*>(xs + b * (HIDDEN + 8) + 8 * k) = load_cg(step.activations + (u64)i * 8);
    }
    if (threadIdx.x < BATCH) factors[threadIdx.x] = __ldcg(step.factors + threadIdx.x);
  };

  // Small vectors of later stages, into the L2 cache: each block a line.
  auto prefetch = [&](const float* from, int count) {
    const int at = blockIdx.x * 32 + (int)threadIdx.x * 32 * gridDim.x;
    if (at < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  };

  auto mark = [&](int i) {
    if (step.times != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
      u64 now;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
      step.times[i] = now;
    }
  };

  float* x0 = step.x;
  float* x1 = step.x + BATCH * HIDDEN;
#pragma unroll 1
  for (int stage = 0; stage <= 4 * LAYERS; stage++) {
    const int kind = stage == 4 * LAYERS ? HEAD_STAGE : stage % 4;
    const Layer& layer = layers[min(stage / 4, LAYERS - 1)];
    if (kind == QKV_STAGE || kind == GATE_UP_STAGE || kind == HEAD_STAGE) {
      const float* base = stage == 0 ? nullptr : kind == GATE_UP_STAGE ? x0 : x1;
      const float* parts = kind == GATE_UP_STAGE ? step.o_parts : step.down_parts;
      float* keep = kind == GATE_UP_STAGE ? x1 : x0;
      const int count = stage == 0 ? 0 : kind == GATE_UP_STAGE ? KV_HEADS : SPLITS;
      norm(base, parts, count, kind == HEAD_STAGE ? step.norm : kind == QKV_STAGE ? layer.input_norm : layer.post_norm, keep,
           FORM == 0 && kind != HEAD_STAGE);
      if constexpr (GATHER) load_activations();
    } else if (kind == O_STAGE) {
      const int head = min((int)(blockIdx.x / (gridDim.x / KV_HEADS)), KV_HEADS - 1);
      if constexpr (GATHER) {
        combine();
        stage_values(Tag<GROUP * DIM>(), [&](int b, int pair) {
          return __ldcg(reinterpret_cast<const float2*>(step.attended + (u64)b * HEADS * DIM + head * GROUP * DIM) + pair);
        });
      } else {
        float* weights = acc;
        for (int i = warp; i < BATCH * GROUP; i += WARPS) chunk_weights(i / GROUP, head * GROUP + i % GROUP, weights + i * step.chunks);
        __syncthreads();
        stage_values(Tag<GROUP * DIM>(), [&](int b, int pair) {
          const int h = 2 * pair / DIM, k = 2 * pair % DIM;
          return attended(b, head * GROUP + h, k, weights + (b * GROUP + h) * step.chunks);
        });
      }
    } else {
      constexpr int WIDTH = INTER / SPLITS;
      const int split = min((int)(blockIdx.x / (gridDim.x / SPLITS)), SPLITS - 1);
      stage_values(Tag<WIDTH>(), [&](int b, int pair) {
        return __ldcg(reinterpret_cast<const float2*>(step.inner + (u64)b * INTER + split * WIDTH) + pair);
      });
    }
    __syncthreads();
    mark(stage * 5);
    if (kind == QKV_STAGE) prefetch(layer.post_norm, HIDDEN);
    if (kind == DOWN_STAGE && stage + 1 < 4 * LAYERS) {
      prefetch(layers[stage / 4 + 1].input_norm, HIDDEN);
      prefetch(layers[stage / 4 + 1].bias, QKV);
    }
    switch (kind) {
      case QKV_STAGE: products(Tag<QKV_STAGE>(), layer); break;
      case O_STAGE: products(Tag<O_STAGE>(), layer); break;
      case GATE_UP_STAGE: products(Tag<GATE_UP_STAGE>(), layer); break;
      case DOWN_STAGE: products(Tag<DOWN_STAGE>(), layer); break;
      default: products(Tag<HEAD_STAGE>(), layer);
    }
    mark(stage * 5 + 1);
    if (kind == HEAD_STAGE) break;
    barrier();
    mark(stage * 5 + 2);
    if (kind == QKV_STAGE) {
      attention(stage / 4);
      mark(stage * 5 + 3);
      barrier();
      mark(stage * 5 + 4);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  // The last block to leave makes the barrier ready for the next step.
  if (threadIdx.x == 0) {
    u32 left;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(left) : "l"(step.barrier + 1) : "memory");
    if (left == gridDim.x - 1) {
      step.barrier[0] = 0;
      step.barrier[1] = 0;
    }
  }
}
