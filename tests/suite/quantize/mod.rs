//! Quantized and merged model folders, and the program `quantize_base`.

mod awq_folders;
mod merge;
mod nf4_folders;
mod nf4_outputs;
mod quantize_base;
mod quantize_base_faults;
