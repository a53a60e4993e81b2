//! The model: transformers' goldens, configurations and model folders as other tools write them.

mod configs;
pub mod folders;
pub mod goldens;
