//! Links against libtorch so that the binaries find it without LD_LIBRARY_PATH, and names the commit they come from.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The libtorch that tch is made for.
const LIBTORCH_VERSION: &str = "2.11.0";

/// Where libtorch lies as seen from a binary: in `target/release` and `target/release/deps` of this project, and in
/// an installation (`bin/` beside `lib/`). The absolute path comes after them, so that a copied project folder uses its own.
const RELATIVE_LIBRARY_FOLDERS: [&str; 3] = [
    "$ORIGIN/../../.libtorch/torch/lib",
    "$ORIGIN/../../../.libtorch/torch/lib",
    INSTALLED,
];
/// The same in an installation.
const INSTALLED: &str = "$ORIGIN/../lib";
/// Set for a release: no path of this machine goes into the programs, which then run from an installation only.
const RELOCATABLE: &str = "MEDVISION_RELOCATABLE";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={RELOCATABLE}");
    link_libtorch();
    name_models();
    embed_page();
    name_commit();
}

fn link_libtorch() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libtorch = match env::var_os("LIBTORCH") {
        Some(path) => PathBuf::from(path),
        None => fail("LIBTORCH is not set; run cargo inside the project, whose .cargo/config.toml sets it"),
    };
    let lib = libtorch.join("lib");
    if !lib.join("libtorch_cpu.so").exists() {
        fail(&format!(
            "no libtorch in {}; run `make setup` once",
            libtorch.display()
        ));
    }
    if let Some(found) = libtorch_version(&libtorch).filter(|found| found != LIBTORCH_VERSION) {
        fail(&format!(
            "{} is libtorch {found}, {LIBTORCH_VERSION} is needed; unset LIBTORCH and run `make setup`",
            libtorch.display()
        ));
    }
    compile_shims(&libtorch);
    if env::var_os(RELOCATABLE).is_some() {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{INSTALLED}");
        return;
    }
    let lib = lib.canonicalize().unwrap_or(lib);
    for folder in RELATIVE_LIBRARY_FOLDERS
        .map(Path::new)
        .into_iter()
        .chain([lib.as_path()])
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}

/// Names this checkout's models for programs that `cargo install` puts elsewhere; they load its libtorch, too.
fn name_models() {
    if env::var_os(RELOCATABLE).is_none()
        && let Some(root) = env::var_os("CARGO_MANIFEST_DIR")
    {
        let models = Path::new(&root).join("models");
        println!("cargo::rustc-env=MEDVISION_MODELS={}", models.display());
    }
}

/// What tch does not bind: nodes of autograd's graph, the allocator's figures, the choice of attention kernels,
/// page-locked memory, process groups.
const SHIMS: [&str; 5] = [
    "src/torch/autograd.cpp",
    "src/torch/allocator.cpp",
    "src/torch/attention.cpp",
    "src/torch/transfer.cpp",
    "src/torch/c10d.cpp",
];
/// Declarations of gloo's, which libtorch holds but has no headers of.
const GLOO_STUB: &str = "src/torch/stub";

/// What they are made from beside themselves.
const OTHERS: [&str; 7] = [
    "src/torch/shim.hpp",
    "src/torch/stub/gloo/algorithm.h",
    "src/torch/stub/gloo/common/error.h",
    "src/torch/stub/gloo/context.h",
    "src/torch/stub/gloo/rendezvous/store.h",
    "src/torch/stub/gloo/transport/device.h",
    "build.rs",
];
/// Name of the library that they make.
const SHIM_LIBRARY: &str = "medvision_shims";

/// Compiles the few lines of C++, in one piece: each file alone would read libtorch's headers again, half a minute each.
/// What was made from the same sources stays, since this program runs again whenever any source of the crate changes.
fn compile_shims(libtorch: &Path) {
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let (stamp, made_from) = (out.join("made_from"), made_from(libtorch, &abi));
    let made = out.join(format!("lib{SHIM_LIBRARY}.a")).exists()
        && std::fs::read_to_string(&stamp).is_ok_and(|found| found == made_from);
    if made {
        println!("cargo::rustc-link-lib=static={SHIM_LIBRARY}");
        println!("cargo::rustc-link-search=native={}", out.display());
        println!("cargo::rustc-link-lib=stdc++");
        return;
    }
    let all = out.join("shims.cpp");
    let includes = SHIMS.map(|source| format!("#include \"{}\"\n", root.join(source).display()));
    if let Err(error) = std::fs::write(&all, includes.concat()) {
        fail(&format!("cannot write {}: {error}", all.display()));
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file(all)
        .opt_level(1)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .include(GLOO_STUB)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // Warnings in libtorch's headers are not ours to fix.
        .warnings(false)
        .compile(SHIM_LIBRARY);
    // Without the stamp they are compiled once more.
    let _ = std::fs::write(stamp, made_from);
}

/// All that the shims depend on, as text.
fn made_from(libtorch: &Path, abi: &str) -> String {
    let settings = ["CXX", "CXXFLAGS", "TARGET", "HOST"].map(|name| env::var(name).unwrap_or_default());
    let mut text = format!("{LIBTORCH_VERSION} {} {abi} {settings:?}\n", libtorch.display());
    for source in SHIMS.iter().chain(&OTHERS) {
        text += &std::fs::read_to_string(source).unwrap_or_default();
    }
    text
}

/// The version in libtorch's own headers; `None` where they do not tell.
fn libtorch_version(libtorch: &Path) -> Option<String> {
    let headers = [
        "include/torch/headeronly/version.h",
        "include/torch/csrc/api/include/torch/version.h",
    ];
    headers.iter().find_map(|header| {
        let text = std::fs::read_to_string(libtorch.join(header)).ok()?;
        let number = |part: &str| {
            let define = format!("#define TORCH_VERSION_{part} ");
            text.lines()
                .find_map(|line| line.strip_prefix(&define))
                .map(str::trim)
        };
        Some(format!(
            "{}.{}.{}",
            number("MAJOR")?,
            number("MINOR")?,
            number("PATCH")?
        ))
    })
}

/// Where the demo page's files are.
const PAGE: &str = "assets/page";

/// Writes the table of the page's files for `src/server/demo/assets.rs`, so that a new file needs no change there.
fn embed_page() {
    println!("cargo::rerun-if-changed={PAGE}");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(PAGE);
    let files = std::fs::read_dir(&folder).and_then(|files| files.map(|file| Ok(file?.path())).collect());
    let mut files: Vec<PathBuf> =
        files.unwrap_or_else(|error| fail(&format!("cannot list {}: {error}", folder.display())));
    files.sort();
    let mut table = "const PAGE: &[(&str, &[u8])] = &[\n".to_owned();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // Strings in Rust's own notation. The folder's name stays out: the length of this text moves the positions that inline
        // assembly is marked with, and these are in the hashes that name symbols.
        table += &format!(
            "    ({name:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {:?}))),\n",
            format!("/{PAGE}/{name}")
        );
    }
    table += "];\n";
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("page.rs");
    if let Err(error) = std::fs::write(&out, table) {
        fail(&format!("cannot write {}: {error}", out.display()));
    }
}

/// Sets `MEDVISION_GIT_HASH` for the crate: from the environment, else from git, else "unknown".
///
/// It names the commit whose sources were compiled: cargo runs this again when they change, not at
/// every commit, so that a commit alone does not rebuild everything.
fn name_commit() {
    println!("cargo::rerun-if-env-changed=MEDVISION_GIT_HASH");
    for sources in ["src", "scripts", "api", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={sources}");
    }
    let hash = env::var("MEDVISION_GIT_HASH")
        .ok()
        .filter(|hash| !hash.is_empty());
    println!(
        "cargo:rustc-env=MEDVISION_GIT_HASH={}",
        hash.or_else(git_hash).unwrap_or_else(|| "unknown".into())
    );
}

fn git_hash() -> Option<String> {
    let describe = [
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ];
    let output = Command::new("git")
        .args(describe)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
