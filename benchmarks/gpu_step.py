#!/usr/bin/env python3
"""The decode step's kernel (src/kernels/cuda/step.cu) on one GPU: its values against torch in f32, its values alone against those
in a batch, and its time, as a whole and by stage, with random weights of a shape, without and with LoRA adapters.

    python benchmarks/gpu_step.py

Needs torch with CUDA. `step.rs` chooses the same sizes of shared memory.
"""
import ctypes
import glob
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.dont_write_bytecode = True
import record

CUDA = Path(__file__).parent.parent / "src/kernels/cuda"
dev = 'cuda'
torch.manual_seed(0)
torch.zeros(1, device=dev)
cuda = ctypes.CDLL('libcuda.so.1')
def ok(r, what=''):
    if r: 
        n = ctypes.c_char_p(); cuda.cuGetErrorString(r, ctypes.byref(n)); raise RuntimeError(f'{what}: {n.value}')
lines = []
def say(**k):
    lines.append(k)
    print(json.dumps(k), flush=True)
SRC = ''.join((CUDA / f'{name}.cu').read_text() for name in ('values', 'stream', 'lora', 'producer', 'attention', 'products', 'step'))
def nvrtc():
    nvidia = Path(torch.__path__[0]).parent / 'nvidia'
    found = sorted(f for f in glob.glob(f'{nvidia}/*/lib/libnvrtc.so.*') if '.alt.' not in f)
    return ctypes.CDLL(found[0] if found else 'libnvrtc.so')
compilers, built = ThreadPoolExecutor(os.cpu_count()), {}
def build(opts):  # the compiled kernel, later
    if (key := tuple(opts)) not in built: built[key] = compilers.submit(compiled, opts)
    return built[key]
def compiled(opts):
    n = nvrtc()
    p = ctypes.c_void_p(); n.nvrtcCreateProgram(ctypes.byref(p), SRC.encode(), None, 0, None, None)
    a = (ctypes.c_char_p*len(opts))(*[o.encode() for o in opts]); r = n.nvrtcCompileProgram(p, len(opts), a)
    s = ctypes.c_size_t()
    if r:
        n.nvrtcGetProgramLogSize(p, ctypes.byref(s)); b = ctypes.create_string_buffer(s.value); n.nvrtcGetProgramLog(p, b); raise RuntimeError(b.value.decode())
    n.nvrtcGetCUBINSize(p, ctypes.byref(s)); b = ctypes.create_string_buffer(s.value); n.nvrtcGetCUBIN(p, b); return b.raw
S7 = dict(HIDDEN=3584, INTER=18944, HEADS=28, KV_HEADS=4, DIM=128, LAYERS=28, VOCAB=152064, SPLITS=4)
NANO = dict(HIDDEN=256, INTER=768, HEADS=4, KV_HEADS=2, DIM=64, LAYERS=6, VOCAB=8192, SPLITS=1)
NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], device=dev)
h16 = NF4.half().view(torch.int16).to(torch.int64) & 0xffff
by = torch.arange(256, device=dev)
PAIRS = (h16[by >> 4] | h16[by & 15] << 16).to(torch.int64)
PAIRS = torch.where(PAIRS >= 2**31, PAIRS - 2**32, PAIRS).to(torch.int32)
SM = torch.cuda.get_device_properties(0).multi_processor_count

class Mat:  # codes [N, K/2] u8, scales [N, K/64] f16
    def __init__(self, N, K, keep=True):
        self.p = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device=dev)
        self.s = ((torch.rand(N, K // 64, device=dev) * .5 + .5) * (2.0 / K ** .5)).half()
        self.N, self.K = N, K
    def dense(self):
        v = torch.stack([NF4[(self.p >> 4).long()], NF4[(self.p & 15).long()]], -1).view(self.N, self.K // 64, 64) * self.s.float()[..., None]
        return v.view(self.N, self.K)
def repack(p, s, splits=1):
    N, K = p.shape[0], p.shape[1] * 2
    RT, KT = N // 16, K // 128
    codes = p.view(RT, 2, 8, KT, 2, 4, 8).permute(0, 3, 1, 2, 5, 4, 6).reshape(RT, KT, 1024)
    sc = s.view(RT, 2, 8, KT, 2).permute(0, 3, 2, 1, 4).reshape(RT, KT, 32).contiguous().view(torch.uint8)
    t = torch.cat([codes, sc], -1)
    return t.view(RT, splits, KT // splits, 1088).permute(1, 0, 2, 3).contiguous()
class Grouped:  # AWQ: codes [N, K/2] u8, scales [N, K/128] f16, zeros [N, K/128]
    def __init__(self, N, K):
        self.p = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device=dev)
        self.s = ((torch.rand(N, K // 128, device=dev) * .5 + .5) * (.25 / K ** .5)).half()
        self.z = torch.randint(4, 12, (N, K // 128), device=dev)
        self.N, self.K = N, K
    def dense(self):
        v = torch.stack([self.p >> 4, self.p & 15], -1).view(self.N, self.K // 128, 128).float() - self.z.float()[..., None]
        return (v * self.s.float()[..., None]).view(self.N, self.K)
    def tiles(self):  # codes and scales as `repack` takes them: nibble n of a word is value 2 n, nibble 4 + n value 2 n + 1
        even, odd = self.p.view(self.N, -1, 2, 2).unbind(-1)
        codes = torch.cat([even >> 4 | odd & 240, even & 15 | odd << 4], -1).view(self.N, -1)
        return codes, torch.stack([self.s, (1024 + self.z).half()], -1).view(self.N, -1)
def parts(m): return (m.p, m.s) if isinstance(m, Mat) else m.tiles()
def interleave(a, b):  # rows of 8 and 8
    return torch.stack([a.view(a.shape[0] // 8, 8, -1), b.view(b.shape[0] // 8, 8, -1)], 1).reshape(2 * a.shape[0], -1)

LAYER = np.dtype([('qkv','u8'),('o','u8'),('gu','u8'),('down','u8'),('up','u8'),('bias','u8'),('n1','u8'),('n2','u8'),('units','f4',4)], align=True)
SEQ = np.dtype([('keys','u8'),('values','u8'),('stride','u8'),('capacity','i4'),('length','i4'),('position','i4'),('token','i4'),('adapter','i8')], align=True)
PAIR = np.dtype([('a','u8'),('b','u8'),('rank','i4'),('scale','f4')], align=True)
STEP = np.dtype([(n,'u8') for n in 'layers embedding head norm inverse pairs x qkv partials statistics attended activations factors o_parts inner down_parts logits barrier times inner_parts'.split()] + [('adapters','u8',8), ('eps','f4'),('factor','f4'),('chunks','i4'),('adapter_count','i4'),('epoch','u4'), ('sequences', SEQ, 8)], align=True)

class Adapter:  # A LoRA pair for each of q, k, v, o, gate, up, down of each layer, and for the head; ranks of 0: none
    def __init__(self, sizes, layers, head, rank):
        self.rows, self.ab = np.zeros(7 * layers + 1, PAIR), []
        for i in range(7 * layers + 1):
            n, k = sizes[i % 7] if i < 7 * layers else head
            r = rank(i if i < 7 * layers else -1)
            a, b = (torch.randn(r, k, device=dev) / k ** .5).bfloat16(), (torch.randn(n, r, device=dev) / max(r, 1) ** .5).bfloat16()
            self.ab.append((a, b)); self.rows[i] = (a.data_ptr(), b.data_ptr(), r, .5)
        self.table = torch.from_numpy(self.rows.view(np.uint8).copy()).to(dev)
        self.bytes = sum((a.numel() + b.numel()) * 2 for a, b in self.ab)
    def part(self, i, x):
        a, b = self.ab[i]
        return .5 * (b.float() @ (a.float() @ x)) if len(a) else 0

def run(shape, form, layers, lengths, check, times=20, cap=2048, batches=(1, 2, 4, 8), ranks=(0, 64)):
    S = dict(shape, LAYERS=layers); H, I, NH, KV, D, V = (S[k] for k in ('HIDDEN','INTER','HEADS','KV_HEADS','DIM','VOCAB'))
    Q = NH * D; QKV = (NH + 2 * KV) * D; SP = S['SPLITS']; GRP = NH // KV
    keep, rows, ref = [], np.zeros(layers, LAYER), []
    wbytes = 0
    for l in range(layers):
        bias = torch.randn(QKV, device=dev) * .1; n1 = torch.rand(H, device=dev) + .5; n2 = torch.rand(H, device=dev) + .5
        if form != 2:
            kind = Mat if form == 0 else Grouped
            q, o, g, u, d = kind(QKV, H), kind(H, Q), kind(I, H), kind(I, H), kind(H, I)
            both = [interleave(*pair) for pair in zip(parts(g), parts(u))]
            packs = [repack(*parts(q)), repack(*parts(o), KV), repack(*both), repack(*parts(d), SP)]
            ref.append([m.dense() for m in (q, o, g, u, d)] if check else None)
            extra = [0]
        else:
            w = [(torch.randn(n, k, device=dev) / k ** .5).bfloat16() for n, k in ((QKV, H), (H, Q), (I, H), (I, H), (H, I))]
            packs = [w[0], w[1], w[2], w[4]]; extra = [w[3].data_ptr()]; keep.append(w)
            ref.append([m.float() for m in w] if check else None)
        wbytes += sum(p.numel() * p.element_size() for p in packs) + (packs[2].numel() * 2 if form == 2 else 0)
        keep.append((bias, n1, n2, packs))
        rows[l] = tuple([p.data_ptr() for p in packs] + extra + [bias.data_ptr(), n1.data_ptr(), n2.data_ptr()]) + ([1, 1, 1, 1],)
    emb = torch.randn(V, H, device=dev).bfloat16(); head = (torch.randn(V, H, device=dev) / H ** .5).bfloat16(); norm = torch.rand(H, device=dev) + .5
    wbytes += head.numel() * 2
    inv = 1.0 / (1e6 ** (torch.arange(0, D, 2, device=dev).float() / D))
    lay = torch.from_numpy(rows.view(np.uint8).copy()).to(dev)
    kc = [torch.randn(layers, KV, cap, D, device=dev).bfloat16() for _ in lengths]; vc = [torch.randn(layers, KV, cap, D, device=dev).bfloat16() for _ in lengths]
    tokens = [(i * 977 + 5) % V for i in range(len(lengths))]
    # Of the sequences of a check, some have one adapter, some the other, some none; in a measurement all have one.
    sizes = [(Q, H), (KV * D, H), (KV * D, H), (H, Q), (I, H), (I, H), (H, I)]
    most = max(ranks)
    uneven = lambda i: 0 if i % 5 == 1 else most if i % 2 else 24
    adapters = [Adapter(sizes, layers, (V, H), r) for r in ([lambda i: most, uneven] if check else [lambda i: most if i >= 0 else 0])] if most else []
    adapter_of = [0, -1, 1, 0, 1, 1, -1, 0] if check else [0] * 8
    logits_of, alone_ms = {}, {}
    def options(batch, lora):
        defs = dict(S, BATCH=batch, FORM=form, VALUE_TYPE=1, STAGES=(6 if batch == 1 else 4) if form != 2 else 3, ACC_FLOATS=4096 if batch == 1 else 8192, LORA=(lora + 63) // 64 * 64, ADAPTERS=min(batch, len(adapters)), TIMES=1)
        return defs, [f'-D{k}={v}' for k, v in defs.items()] + ['--gpu-architecture=sm_90', '--std=c++17', '--device-as-default-execution-space']
    variants = [(batch, lora) for lora in ranks for batch in batches]
    for variant in variants: build(options(*variant)[1])
    for batch, lora in variants:
        defs, src_opts = options(batch, lora)
        try: cub = build(src_opts).result()
        except RuntimeError as e: say(error=str(e)[:2000]); continue
        mod = ctypes.c_void_p(); ok(cuda.cuModuleLoadData(ctypes.byref(mod), cub), 'load'); f = ctypes.c_void_p(); ok(cuda.cuModuleGetFunction(ctypes.byref(f), mod, b'step'), 'function')
        slot = 1088 if form != 2 else 2048
        att = 2 * ((8 * (D + 8) * 2 + 512 + 8 * GRP * D * 4 + 127) // 128 * 128)
        inputs = max(att, (H + 8) * 2 * batch, (GRP * D + 8) * 2 * batch, (I // SP + 8) * 2 * batch)
        smem = (32768 if form == 0 else 0) + 16 * defs['STAGES'] * slot + defs['ACC_FLOATS'] * 4 + 2 * batch * 16 * 4 + 128 + (batch * (3 * defs['LORA'] + 8) * 2 + defs['ADAPTERS'] * ((7 * layers + 1) * 24 + 15) if lora else 0) + inputs + 3072 + 80 * layers
        if smem > 227 * 1024: say(skip=smem); continue
        ok(cuda.cuFuncSetAttribute(f, 8, smem), 'shared')
        regs = ctypes.c_int(); cuda.cuFuncGetAttribute(ctypes.byref(regs), 4, f)
        seqs = np.zeros(batch, SEQ)
        with_adapter = [adapter_of[b] if lora else -1 for b in range(batch)]
        used = sorted({a for a in with_adapter if a >= 0})
        for b in range(batch): seqs[b] = (kc[b].data_ptr(), vc[b].data_ptr(), KV * cap * D, cap, lengths[b], lengths[b] - 3, tokens[b], used.index(with_adapter[b]) if with_adapter[b] >= 0 else -1)
        chunks = (max(lengths) // 128) + 1
        z = lambda *s: torch.zeros(*s, device=dev)
        bufs = dict(x=z(2, batch, H), qkv=z(batch, QKV), partials=z(batch, chunks, NH, D), statistics=z(batch, chunks, NH, 2), attended=z(batch, Q), activations=torch.zeros(batch, H, dtype=torch.int16, device=dev), factors=z(batch), o_parts=z(KV, batch, H), inner=z(batch, I), down_parts=z(SP, batch, H), logits=z(batch, V), barrier=torch.zeros(2, dtype=torch.int32, device=dev), inner_parts=torch.zeros(batch * 3 * max(lora, 1) * 128, dtype=torch.int64, device=dev))
        st = np.zeros(1, STEP)
        for n, t in dict(layers=lay, embedding=emb, head=head, norm=norm, inverse=inv, pairs=PAIRS, **bufs).items(): st[n] = t.data_ptr()
        st['adapters'][0][:len(used)] = [adapters[a].table.data_ptr() for a in used]; st['adapter_count'] = len(used)
        st['eps'] = 1e-6; st['factor'] = 1.0; st['chunks'] = chunks; st['sequences'][0][:batch] = seqs
        arg = ctypes.create_string_buffer(st.tobytes()); params = (ctypes.c_void_p * 1)(ctypes.addressof(arg))
        stream = torch.cuda.current_stream().cuda_stream
        def launch(grid=SM, arg=arg, params=params):
            ctypes.c_uint32.from_buffer(arg, STEP.fields['epoch'][1]).value += 1
            ok(cuda.cuLaunchCooperativeKernel(f, grid, 1, 1, 512, 1, 1, smem, ctypes.c_void_p(stream), params), 'launch')
        launch(); torch.cuda.synchronize()
        out = bufs['logits'].clone()
        same = None
        for b, a in enumerate(with_adapter):
            if (b, a) in logits_of: same = (same is not False) and bool((logits_of[b, a] == out[b]).all())
            else: logits_of[b, a] = out[b].clone()
        launch(SM - 3); torch.cuda.synchronize(); grid_same = bool((bufs['logits'] == out).all())
        res = dict(form=form, rank=lora, batch=batch, smem=smem, regs=regs.value, same_as_smaller_batch=same, same_with_other_grid=grid_same)
        if check:
            errs = []
            for b in range(batch):
                x = emb[tokens[b]].float(); pos = lengths[b] - 3; L = lengths[b]
                cos = torch.cos(pos * inv).repeat(2); sin = torch.sin(pos * inv).repeat(2)
                rot = lambda a: torch.cat([-a[..., D // 2:], a[..., :D // 2]], -1)
                ad = with_adapter[b]
                lora_of = lambda i, x: adapters[ad].part(i, x) if ad >= 0 else 0
                cat3 = lambda l, h: torch.cat([lora_of(7 * l + i, h) + torch.zeros(sizes[i][0], device=dev) for i in range(3)])
                rms = lambda a, w: a * torch.rsqrt((a * a).mean() + 1e-6) * w
                for l in range(layers):
                    wq, wo, wg, wu, wd = ref[l]; bias, n1, n2, _ = keep[l] if form != 2 else keep[2 * l + 1]
                    h = rms(x, n1); y = wq @ h + bias + cat3(l, h)
                    q = y[:Q].view(NH, D); k = y[Q:Q + KV * D].view(KV, D); v = y[Q + KV * D:].view(KV, D)
                    q = q * cos + rot(q) * sin; k = k * cos + rot(k) * sin
                    K = torch.cat([kc[b][l, :, :L].float(), k[:, None]], 1); VV = torch.cat([vc[b][l, :, :L].float(), v[:, None]], 1)
                    a = torch.softmax((q.view(KV, GRP, 1, D) * K[:, None]).sum(-1) / D ** .5, -1)
                    a = (a[..., None] * VV[:, None]).sum(2).reshape(-1); x = x + wo @ a + lora_of(7 * l + 3, a)
                    h = rms(x, n2); h = torch.nn.functional.silu(wg @ h + lora_of(7 * l + 4, h)) * (wu @ h + lora_of(7 * l + 5, h)); x = x + wd @ h + lora_of(7 * l + 6, h)
                h = rms(x, norm); want = head.float() @ h + lora_of(7 * layers, h)
                errs.append(round(((out[b] - want).norm() / want.norm()).item(), 5))
            res['errors'] = errs
        if layers > 2:
            tm = torch.zeros((4 * layers + 1) * 5, dtype=torch.int64, device=dev); st['times'] = tm.data_ptr()
            arg2 = ctypes.create_string_buffer(st.tobytes()); p2 = (ctypes.c_void_p * 1)(ctypes.addressof(arg2))
            ctypes.c_uint32.from_buffer(arg2, STEP.fields['epoch'][1]).value = 1 << 20
            for _ in range(3): launch(SM, arg2, p2); torch.cuda.synchronize()
            m = tm.view(-1, 5).cpu().tolist(); acc = {}
            last = None
            for i, r in enumerate(m):
                kind = 'head' if i == 4 * layers else ('qkv', 'o', 'gu', 'down')[i % 4]
                for j, n in enumerate(('values', 'products', 'barrier') + (('attention', 'barrier2') if kind == 'qkv' else ())):
                    if kind == 'head' and j == 2: break
                    if last is not None: acc.setdefault((kind, n), []).append(r[j] - last)
                    last = r[j]
            res['us'] = {' '.join(k): round(statistics.mean(v) / 1000, 2) for k, v in acc.items()}
        ts = []
        for _ in range(times):
            a, e = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True); a.record(); launch(); launch(); launch(); launch(); e.record(); torch.cuda.synchronize(); ts.append(a.elapsed_time(e) / 4)
        t = statistics.median(ts); read = wbytes + (adapters[0].bytes if lora and not check else 0)
        alone_ms[batch, lora] = t
        if lora and (batch, 0) in alone_ms: res['slowdown'] = round(t / alone_ms[batch, 0] - 1, 4)
        res.update(ms=round(t, 4), tokens_per_s=round(1000 * batch / t), TBs=round(read / t / 1e9, 3)); say(**res)
if __name__ == '__main__':
    a = torch.empty(2**31, dtype=torch.uint8, device=dev); b = torch.empty_like(a); b.copy_(a); torch.cuda.synchronize()
    start = time.time(); [b.copy_(a) for _ in range(10)]; torch.cuda.synchronize()
    say(copy_TBs=round(2 * 10 * 2**31 / (time.time() - start) / 1e12, 2)); del a, b
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths = [1313, 5, 700, 127, 128, 1500, 0, 2000]
    for name, shape, form, layers in (('embedded', NANO, 2, 6), ('embedded', NANO, 0, 6), ('embedded', NANO, 1, 6), ('7B', S7, 0, 2), ('7B', S7, 1, 2), ('7B', S7, 2, 2)):
        say(shape=name, layers=layers, checked=True); run(shape, form, layers, lengths, True, times=5)
    for name, shape, form in (('embedded', NANO, 2), ('7B', S7, 0), ('7B', S7, 1), ('7B', S7, 2)):
        torch.cuda.empty_cache()
        say(shape=name, layers=shape['LAYERS'], context=1313); run(shape, form, shape['LAYERS'], [1313] * 8, False)
    gpu = torch.cuda.get_device_name(0)
    print('written:', record.save('gpu_step', {'gpu': gpu, 'forms': {'0': 'NF4', '1': 'AWQ', '2': 'bf16'}, 'measurements': lines}))
