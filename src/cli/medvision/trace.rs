//! `medvision trace`: dumps the tensors of every stage, to compare implementations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use tch::{Kind, Tensor};

use super::{
    inputs::Source,
    load_model,
    options::{FileArgs, PixelArgs},
    prompt_or_default,
};
use crate::checkpoint::write_tensors;
use crate::cli::{AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, free_text};
use crate::console::{self, Level};
use crate::engine::{Picture, ReadRequest};
use crate::fs::parent_folder;
use crate::processing::{Content, DecodeLimits, Message, RgbPage, Role, decode};
use crate::{Error, Result};

/// Dump the tensors of every stage, for comparison with another implementation
///
/// The safetensors file holds input_ids, pixel_values, image_grid_thw, image_features, position_ids and
/// logits: ids as i64, everything else as f32. Images precede the prompt text; without an
/// image the image tensors are absent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct TraceArgs {
    /// Page image, or - for standard input; repeatable
    #[arg(
        long,
        value_name = "FILE",
        env = "MVP_IMAGE",
        hide_env_values = true,
        required_unless_present = "prompt"
    )]
    image: Vec<PathBuf>,

    /// Prompt [default: as for extract]
    #[arg(short, long, value_name = "TEXT", env = "MVP_PROMPT", hide_env_values = true,
          allow_hyphen_values = true, value_parser = free_text)]
    prompt: Option<String>,

    /// Output file, overwritten if it exists
    #[arg(
        short,
        long,
        value_name = "FILE.safetensors",
        env = "MVP_OUT",
        hide_env_values = true
    )]
    out: PathBuf,

    #[command(flatten)]
    files: FileArgs,

    #[command(flatten)]
    pixels: PixelArgs,

    #[command(flatten)]
    adapter: AdapterArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the stages once and writes their tensors.
pub(super) fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let prompt = prompt_or_default(args.prompt.as_deref())?;
    let project = args.common.project()?;
    let model = args.common.model_folder(&project)?;
    let adapter = args.adapter.named(&project)?;
    check_output(&args.out)?;
    let images = args
        .image
        .iter()
        .map(|path| page(path, args.files.limit()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let reader = load_model(&model.path, adapter.as_deref(), &args.common, &args.pixels)?;
    let tensors = reader.trace(&request(prompt, images))?;
    write(&args.out, &tensors)?;
    let names: Vec<String> = tensors
        .iter()
        .map(|(name, tensor)| format!("{name} {:?}", tensor.size()))
        .collect();
    console::say(
        Level::INFO,
        &format!("{}: {}", args.out.display(), names.join(", ")),
    );
    Ok(ExitCode::from(EXIT_OK))
}

/// Decodes an image; errors name its file.
fn page(path: &Path, limit: u64) -> anyhow::Result<RgbPage> {
    let source = Source::from(path);
    let bytes = source.read(limit)?;
    decode(&bytes, &DecodeLimits::default()).with_context(|| source.name())
}

/// A request with one message: the images, then the text.
fn request(prompt: String, images: Vec<RgbPage>) -> ReadRequest {
    let mut content = vec![Content::Image; images.len()];
    content.push(Content::Text(prompt));
    let message = Message {
        role: Role::User,
        content,
    };
    ReadRequest::new(vec![message], images.into_iter().map(Picture::from).collect())
}

/// Checks, before any work, that the output can be written.
fn check_output(out: &Path) -> Result<()> {
    match parent_folder(out) {
        folder if !folder.is_dir() => Err(Error::not_found(
            folder,
            "no such folder; --out must be in an existing folder",
        )),
        _ if out.is_dir() => Err(Error::unsuitable(out, "is a folder; --out must name a file")),
        _ => Ok(()),
    }
}

/// Writes integers as i64 and everything else as f32.
fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let converted = tensors.iter().map(|(name, tensor)| {
        let kind = match tensor.f_kind()? {
            Kind::Int64 | Kind::Int => Kind::Int64,
            _ => Kind::Float,
        };
        Ok((name.clone(), tensor.f_to_kind(kind)?))
    });
    write_tensors(path, &converted.collect::<Result<Vec<_>>>()?).map(drop)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use tch::Device;

    use super::*;

    #[test]
    fn tensors_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.safetensors");
        let halves = Tensor::from_slice(&[0.5f32, -2.0]).to_kind(Kind::BFloat16);
        let transposed = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]).tr();
        write(
            &path,
            &[("ids".to_owned(), transposed), ("logits".to_owned(), halves)],
        )
        .unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("ids").unwrap();
        assert_eq!((ids.dtype(), ids.shape()), (Dtype::I64, &[3, 2][..]));
        assert_eq!(ids.data(), bytemuck::cast_slice::<i64, u8>(&[0, 3, 1, 4, 2, 5]));
        let logits = file.tensor("logits").unwrap();
        assert_eq!(logits.dtype(), Dtype::F32);
        assert_eq!(logits.data(), bytemuck::cast_slice::<f32, u8>(&[0.5, -2.0]));
    }
}
