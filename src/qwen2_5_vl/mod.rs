//! qwen2_5_vl
