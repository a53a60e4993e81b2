//! Benchmarks of one model on the test documents: memory, load time, latency, accuracy.

mod args;
mod finetuned;
mod load;
mod quantized;
mod run;
mod tables;

pub use self::args::{BenchmarkArgs, Pages};
pub use self::finetuned::finetuned_benchmark;
pub use self::load::load_note;
pub use self::quantized::{QuantizedBenchmark, QuantizedMethod};
pub use self::run::{BenchmarkRun, benchmark};
pub use self::tables::{comparison_table, summary_table, three_way_table};
