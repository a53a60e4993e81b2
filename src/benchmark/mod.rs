//! Benchmarks of one model: on the test documents (memory, load time, latency, accuracy), and on inputs without meaning (`speed`).

mod finetuned;
mod load;
mod options;
mod quantized;
mod run;
pub mod speed;
mod tables;

pub use self::finetuned::finetuned_benchmark;
pub use self::load::load_note;
pub use self::options::{BenchmarkOptions, Pages};
pub use self::quantized::{quantized_folder, quantized_record};
pub use self::run::{BenchmarkRun, benchmark};
pub use self::tables::{comparison_table, summary_table, three_way_table};
