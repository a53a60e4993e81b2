//! Speed and memory of a model on this machine, without a tokenizer or a page: `medvision bench`.
//!
//! The model is a folder's, or has random weights of published shapes, which are made while it loads.

mod answer;
mod bandwidth;
mod random_weights;
mod run;
mod shapes;
mod table;

pub use self::run::{SpeedOptions, SpeedRun, Steps, Weights, speed_benchmark};
pub use self::shapes::{Form, Shape};
pub use self::table::speed_table;
