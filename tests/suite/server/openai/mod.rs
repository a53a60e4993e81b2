//! OpenAI's routes: with a stub in the model's place, and in `embedded` and `clients` the shipped program with the embedded model.

mod answers;
mod bodies;
mod clients;
mod embedded;
mod files;
mod messages;
mod models;
mod parameters;
mod pictures;
pub mod stub;
