//! A project folder that trains in a second: the embedded model in four bits, and pages of one line.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::suite::program::without_variables;
use medical_vision::quantize::{
    Watch,
    nf4::{Nf4Options, quantize_folder},
};
use medical_vision::records::{self, TrainingMetrics};
use medical_vision::rendering::text_page;
use serde_json::{Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_finetune_lora");
pub const ADAPTER: &str = "models/qwen25-vl-nano-medical-lora";
pub const CHECKPOINTS: &str = "models/qwen25-vl-nano-medical-lora.training";

/// Words that pages are made of.
const WORDS: [&str; 8] = [
    "aspirin", "warfarin", "insulin", "heparin", "codeine", "digoxin", "lithium", "morphine",
];

/// A project folder of its own for one test.
pub struct TrainingProject {
    pub folder: tempfile::TempDir,
}

/// The embedded model in four bits, made once.
fn base() -> &'static Path {
    static BASE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = BASE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let watch = Watch {
            stage: &|_, _, _| {},
            total: &|_| {},
            progress: &|_| {},
            stop: &stop,
        };
        let target = folder.path().join("nf4");
        quantize_folder(&nano(), &target, &Nf4Options::default(), watch).unwrap();
        folder
    });
    // Leaked with the process, as every `OnceLock` is.
    Box::leak(folder.path().join("nf4").into_boxed_path())
}

pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

impl TrainingProject {
    /// With `train` training samples and two for validation; the answers are in capitals, which the model does not know.
    pub fn new(train: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("datasets/formatted/images")).unwrap();
        fs::create_dir_all(root.join("models")).unwrap();
        std::os::unix::fs::symlink(base(), root.join("models/qwen25-vl-nano-bnb-nf4")).unwrap();
        let project = Self { folder };
        let samples: Vec<Value> = (0..train + 2).map(|i| project.sample(i)).collect();
        project.write_split("train", &samples[..train]);
        project.write_split("val", &samples[train..]);
        project
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    /// Writes the page of sample `i`; the sample.
    pub fn sample(&self, i: usize) -> Value {
        let text = format!("{} {} mg", WORDS[i % WORDS.len()], 5 * (i + 1));
        let name = format!("datasets/formatted/images/{i}.png");
        // The line at the top left of a page.
        let page = text_page(&[&text]).to_rgb();
        let cut = image::RgbImage::from_raw(page.width, page.height, page.pixels).unwrap();
        let cut = image::imageops::crop_imm(&cut, 20, 20, 196, 28).to_image();
        cut.save(self.path(&name)).unwrap();
        json!({"image_path": name, "prompt": "List the medications.", "response": text.to_uppercase(), "source": "MTSamples"})
    }

    pub fn write_split(&self, split: &str, samples: &[Value]) {
        let path = self.path(&format!("datasets/formatted/{split}.json"));
        fs::write(path, serde_json::to_vec(samples).unwrap()).unwrap();
    }

    /// `finetune_lora` on this project, small and quick; `flags` come last.
    pub fn command(&self, flags: &[&str]) -> Command {
        let mut command = without_variables(BINARY);
        let small = [
            "--device",
            "cpu",
            "--threads",
            "1",
            "--lora-rank",
            "4",
            "--lora-alpha",
            "8",
            "--batch-size",
            "2",
            "--grad-accum-steps",
            "1",
            "--learning-rate",
            "3e-3",
            "--eval-documents",
            "0",
            "--max-batch-tokens",
            "4096",
        ];
        // The last of two flags would be an error: those in `flags` replace the small ones.
        for pair in small.chunks(2).filter(|pair| !flags.contains(&pair[0])) {
            command.args(pair);
        }
        command
            .arg("--root")
            .arg(self.root())
            .arg("--model")
            .arg(nano())
            .args(flags);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    /// A run that must succeed.
    pub fn succeed(&self, flags: &[&str]) -> Output {
        let output = self.run(flags);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    /// A run that must fail with exit code 1, and what it says.
    pub fn fail(&self, flags: &[&str]) -> String {
        let output = self.run(flags);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(
            !self.path(records::paths::TRAINING_METRICS).exists(),
            "a failed training has no figures"
        );
        stderr(&output)
    }

    /// Starts a run and sends it `signal` once it has written a checkpoint of `step` or a later one.
    pub fn interrupt(&self, flags: &[&str], step: u64, signal: i32) -> Output {
        let child = self.command(flags).spawn().unwrap();
        let start = Instant::now();
        while self.checkpoints().last().is_none_or(|newest| *newest < step) {
            assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint came");
            std::thread::sleep(Duration::from_millis(2));
        }
        send(&child, signal);
        child.wait_with_output().unwrap()
    }

    /// Steps of the checkpoints, the oldest first.
    pub fn checkpoints(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.path(CHECKPOINTS))
            .into_iter()
            .flatten()
            .flatten();
        let mut steps: Vec<u64> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    pub fn metrics(&self) -> TrainingMetrics {
        records::read(&self.path(records::paths::TRAINING_METRICS)).unwrap()
    }

    /// The adapter's file.
    pub fn adapter(&self) -> Vec<u8> {
        fs::read(self.path(ADAPTER).join("adapter_model.safetensors")).unwrap()
    }
}

fn send(child: &Child, signal: i32) {
    // SAFETY: a process that this test started and has not waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn killed(output: &Output) -> bool {
    output.status.signal() == Some(libc::SIGKILL)
}

/// Damages one byte in the middle of a file.
pub fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::File::create(path).unwrap().write_all(&bytes).unwrap();
}
