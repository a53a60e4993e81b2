//! `medvision save-offline` and `load-offline` as users run them, with folders that were damaged or made by somebody hostile.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::program::{assert_failed, code, medvision, run, stderr, stdout, text, without_variables};

const MODEL: &str = "models/qwen25-vl-nano";
const ADAPTER: &str = "models/qwen25-vl-nano-medical-lora";

/// A folder that save-offline wrote, and a project beside it.
struct Offline {
    home: tempfile::TempDir,
}

impl Offline {
    fn new() -> Self {
        let offline = Self {
            home: tempfile::tempdir().unwrap(),
        };
        let folder = offline.folder();
        let saved = run(&["save-offline", text(&folder), "--model", MODEL, "--no-image"]);
        assert_eq!(code(&saved), 0, "{}", stderr(&saved));
        fs::create_dir(offline.project()).unwrap();
        offline
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("offline")
    }

    fn project(&self) -> PathBuf {
        self.home.path().join("project")
    }

    fn models(&self) -> PathBuf {
        self.project().join("models")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn edit_manifest(&self, change: impl FnOnce(&mut Value)) {
        let path = self.file("manifest.json");
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(path, manifest.to_string()).unwrap();
    }

    fn load(&self, flags: &[&str]) -> Output {
        let (folder, project) = (self.folder(), self.project());
        let mut arguments = vec!["load-offline", text(&folder), "--root", text(&project)];
        arguments.extend(flags);
        run(&arguments)
    }

    /// Loading fails, says why, and leaves the project empty.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        assert_failed(&self.load(&["--no-image"]), parts);
        assert_eq!(names(&self.project()), [] as [String; 0]);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A container engine with one image, whose archive is a text; `hang` is what it hangs in.
fn engine(home: &Path, hang: &str) -> PathBuf {
    let path = home.join(format!("engine-{hang}"));
    let script = format!(
        r#"#!/bin/sh
home={home}
[ "$1" != "{hang}" ] || {{ echo beginning; echo $$ >"$home/hangs.new"; mv "$home/hangs.new" "$home/hangs"; sleep 1000; }}
case "$1 $2" in
"info ") ;;
"image inspect") [ "$5" = there ] || {{ echo "no such image: $5" >&2; exit 1; }}; echo 8 ;;
"save there") echo an image ;;
"load ") [ ! -f "$home/meanwhile" ] || sh "$home/meanwhile"; cat >"$home/loaded"; touch "$home/whole"; echo "Loaded image: there" ;;
*) echo "cannot $*" >&2; exit 1 ;;
esac
"#,
        home = home.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Waits until the engine hangs, and returns its process id.
fn hanging(home: &Path) -> i32 {
    let start = Instant::now();
    loop {
        match fs::read_to_string(home.join("hangs")) {
            Ok(id) => return id.trim().parse().unwrap(),
            Err(_) => assert!(
                start.elapsed() < Duration::from_secs(120),
                "the engine was not started"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(process: &Child, signal: i32) {
    // SAFETY: plain system call on a child that has not been waited for.
    unsafe { libc::kill(process.id().cast_signed(), signal) };
}

/// Whether the process still runs.
fn runs(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status
        .split(") ")
        .nth(1)
        .is_some_and(|rest| !rest.starts_with('Z'))
}

#[test]
fn a_model_and_its_adapter_go_from_one_project_to_another() {
    let home = tempfile::tempdir().unwrap();
    let (folder, project) = (home.path().join("offline"), home.path().join("project"));
    fs::create_dir(&project).unwrap();
    let arguments = ["save-offline", text(&folder), "--model", MODEL, "--no-image"];
    let saved = medvision(&arguments).env_remove("MVP_ADAPTER").output().unwrap();
    assert_eq!(code(&saved), 0, "{}", stderr(&saved));
    let summary = stdout(&saved);
    assert!(
        summary.contains(MODEL) && summary.contains(ADAPTER) && summary.contains("no image"),
        "{summary}"
    );
    assert_eq!(
        names(&folder),
        ["README.txt", "SHA256SUMS", "manifest.json", "models"]
    );
    assert_eq!(names(home.path()), ["offline", "project"]);
    let sums = Command::new("sha256sum")
        .args(["--check", "--quiet", "SHA256SUMS"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(sums.status.success(), "{}", stderr(&sums));
    let loaded = run(&["load-offline", text(&folder), "--root", text(&project)]);
    assert_eq!(code(&loaded), 0, "{}", stderr(&loaded));
    assert!(
        stdout(&loaded).contains("every sum is right"),
        "{}",
        stdout(&loaded)
    );
    let models = project.join("models");
    assert_eq!(names(&models), ["qwen25-vl-nano", "qwen25-vl-nano-medical-lora"]);
    for model in [MODEL, ADAPTER] {
        for file in names(Path::new(env!("CARGO_MANIFEST_DIR")).join(model).as_path()) {
            let original = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(model).join(&file)).unwrap();
            assert!(
                fs::read(project.join(model).join(&file)).unwrap() == original,
                "{model}/{file}"
            );
        }
    }
    // The same once more changes nothing, and a folder that is there is not written to.
    let again = run(&["load-offline", text(&folder), "--root", text(&project)]);
    assert_eq!(
        stdout(&again).matches("(was there)").count(),
        2,
        "{}",
        stdout(&again)
    );
    assert_failed(&run(&arguments), &["exists already"]);
    // Into a named folder.
    let into = home.path().join("into");
    let named = run(&["load-offline", text(&folder), "--into", text(&into), "--no-image"]);
    assert_eq!((code(&named), names(&into).len()), (0, 2), "{}", stderr(&named));
    // A program reads with what was loaded.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pages/small_strip_rx.png");
    let read = without_variables(env!("CARGO_BIN_EXE_medvision"))
        .args(["extract", "--model", "qwen25-vl-nano", text(&page)])
        .current_dir(&project)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(stdout(&read).contains("Amoxicillin"), "{}", stderr(&read));
}

#[test]
fn a_damaged_file_is_named_and_nothing_is_loaded() {
    let offline = Offline::new();
    let weights = offline.file("models/qwen25-vl-nano/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    offline.refused(&["models/qwen25-vl-nano/model.safetensors: its SHA-256 is another"]);
    bytes.pop();
    fs::write(&weights, &bytes).unwrap();
    offline.refused(&["model.safetensors: 26559039 bytes, not 26559040"]);
    fs::remove_file(&weights).unwrap();
    fs::remove_file(offline.file("README.txt")).unwrap();
    offline.refused(&["model.safetensors: missing", "README.txt: missing"]);
}

#[test]
fn unexpected_files_and_links_are_refused() {
    let offline = Offline::new();
    let extra = offline.file("models/qwen25-vl-nano/extra.json");
    fs::write(&extra, "{}").unwrap();
    fs::create_dir(offline.file("more")).unwrap();
    fs::write(offline.file("more/run.sh"), "").unwrap();
    offline.refused(&[
        "models/qwen25-vl-nano/extra.json: not in manifest.json",
        "more/run.sh: not in",
    ]);
    fs::remove_file(&extra).unwrap();
    fs::remove_dir_all(offline.file("more")).unwrap();
    // A link with the right content, to a file, and of a folder.
    let (config, aside) = (
        offline.file("models/qwen25-vl-nano/config.json"),
        offline.home.path().join("aside"),
    );
    fs::rename(&config, &aside).unwrap();
    symlink(&aside, &config).unwrap();
    offline.refused(&["models/qwen25-vl-nano/config.json: a link"]);
    fs::remove_file(&config).unwrap();
    fs::rename(&aside, &config).unwrap();
    fs::rename(offline.file("models"), &aside).unwrap();
    symlink(&aside, offline.file("models")).unwrap();
    offline.refused(&["models: a link"]);
    fs::remove_file(offline.file("models")).unwrap();
    fs::rename(&aside, offline.file("models")).unwrap();
    let fifo = Command::new("mkfifo")
        .arg(offline.file("models/pipe"))
        .status()
        .unwrap();
    assert!(fifo.success());
    offline.refused(&["models/pipe: a FIFO"]);
    fs::remove_file(offline.file("models/pipe")).unwrap();
    assert_eq!(code(&offline.load(&["--no-image"])), 0);
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused() {
    let offline = Offline::new();
    let whole = fs::read(offline.file("manifest.json")).unwrap();
    for name in [
        "../outside",
        "models/../../outside",
        "/etc/hostname",
        "models/..",
        "models/x/..",
        "models/qwen25-vl-nano/./config.json",
        "models/.medvision-0-x.partial/config.json",
        "models/a/\u{1b}[2J",
        "run.sh",
    ] {
        fs::write(offline.file("manifest.json"), &whole).unwrap();
        offline.edit_manifest(|manifest| {
            let digest = manifest["files"]["README.txt"].clone();
            manifest["files"]
                .as_object_mut()
                .unwrap()
                .insert(name.to_owned(), digest);
        });
        let shown = name.replace('\u{1b}', "\\u{1b}");
        offline.refused(&[shown.as_str(), "in manifest.json: "]);
    }
    fs::write(offline.file("manifest.json"), &whole).unwrap();
    offline.edit_manifest(|manifest| manifest["complete"] = json!(false));
    offline.refused(&["no manifest.json of save-offline"]);
    fs::write(offline.file("manifest.json"), &whole[..100]).unwrap();
    offline.refused(&["no manifest.json of save-offline"]);
    fs::remove_file(offline.file("manifest.json")).unwrap();
    offline.refused(&["no manifest.json of save-offline"]);
    let absent = run(&["load-offline", "/absent/folder", "--no-image"]);
    assert_failed(&absent, &["/absent/folder: no such folder"]);
}

#[test]
fn a_model_that_is_there_is_kept() {
    let offline = Offline::new();
    let mine = offline.models().join("qwen25-vl-nano");
    fs::create_dir_all(&mine).unwrap();
    fs::write(mine.join("config.json"), "mine").unwrap();
    let refused = offline.load(&["--no-image"]);
    assert_failed(
        &refused,
        &["qwen25-vl-nano: is there already and differs", "--replace"],
    );
    assert_eq!(names(&offline.models()), ["qwen25-vl-nano"]);
    // A disk that is full in the middle of a copy: files of at most a megabyte.
    let (folder, project) = (offline.folder(), offline.project());
    let full = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_medvision"))
        .args([
            "load-offline",
            text(&folder),
            "--root",
            text(&project),
            "--replace",
            "--no-image",
        ])
        .output()
        .unwrap();
    assert_failed(&full, &["model.safetensors: "]);
    assert_eq!(names(&offline.models()), ["qwen25-vl-nano"]);
    assert_eq!(fs::read(mine.join("config.json")).unwrap(), b"mine");
    let replaced = offline.load(&["--no-image", "--replace"]);
    assert_eq!(code(&replaced), 0, "{}", stderr(&replaced));
    assert_eq!(
        names(&offline.models()),
        ["qwen25-vl-nano", "qwen25-vl-nano.previous"]
    );
    let previous = offline.models().join("qwen25-vl-nano.previous/config.json");
    assert_eq!(fs::read(previous).unwrap(), b"mine");
    assert!(mine.join("model.safetensors").exists());
}

#[test]
fn the_image_goes_through_the_engine() {
    let home = tempfile::tempdir().unwrap();
    let (folder, into) = (home.path().join("offline"), home.path().join("models"));
    let works = engine(home.path(), "nowhere");
    let save = [
        "save-offline",
        text(&folder),
        "--model",
        MODEL,
        "--engine",
        text(&works),
        "--image",
    ];
    let absent = run(&[&save[..], &["absent"]].concat());
    assert_failed(&absent, &["no such image", "--no-image"]);
    let flag = run(&[&save[..], &["-x"]].concat());
    assert_eq!(code(&flag), 2, "{}", stderr(&flag));
    let saved = run(&[&save[..], &["there"]].concat());
    assert_eq!(code(&saved), 0, "{}", stderr(&saved));
    assert_eq!(fs::read(folder.join("image.tar")).unwrap(), b"an image\n");
    assert!(
        fs::read_to_string(folder.join("README.txt"))
            .unwrap()
            .contains("docker load")
    );
    let load =
        |flags: &[&str]| run(&[&["load-offline", text(&folder), "--into", text(&into)], flags].concat());
    let left = load(&["--no-image"]);
    assert!(stdout(&left).contains("left (--no-image)"), "{}", stderr(&left));
    let loaded = load(&["--engine", text(&works)]);
    assert!(
        stdout(&loaded).contains("Loaded image: there"),
        "{}",
        stderr(&loaded)
    );
    assert_eq!(fs::read(home.path().join("loaded")).unwrap(), b"an image\n");
    // Without any engine: what to do. With a wrong one: which.
    let mut alone = medvision(&["load-offline", text(&folder), "--into", text(&into)]);
    let alone = alone.env("PATH", home.path()).output().unwrap();
    assert!(
        stdout(&alone).contains("docker load --input"),
        "{}",
        stderr(&alone)
    );
    assert_failed(
        &load(&["--engine", "/absent/engine"]),
        &["/absent/engine (--engine, MVP_ENGINE)"],
    );
    let out = home.path().join("other");
    let none = medvision(&["save-offline", text(&out)])
        .env("PATH", home.path())
        .output()
        .unwrap();
    assert_failed(&none, &["no container engine works here"]);
    // An engine that fails.
    let script = fs::read_to_string(&works).unwrap();
    fs::write(
        &works,
        script.replace("\"save there\") ", "\"save there\") echo half; exit 3;"),
    )
    .unwrap();
    let half = run(&[
        "save-offline",
        text(&out),
        "--model",
        MODEL,
        "--engine",
        text(&works),
        "--image",
        "there",
    ]);
    assert_failed(&half, &["exit status: 3"]);
    assert!(
        !names(home.path())
            .iter()
            .any(|name| name == "other" || name.starts_with('.'))
    );
}

/// Exchanged after its sum was checked, while the engine already reads: it never gets the end.
#[test]
fn an_image_that_changes_meanwhile_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (folder, into) = (home.path().join("offline"), home.path().join("models"));
    let works = engine(home.path(), "nowhere");
    // More than what is sent before the engine reads.
    let image = vec![b'i'; 6 << 20];
    fs::write(home.path().join("image"), &image).unwrap();
    let script = fs::read_to_string(&works).unwrap();
    fs::write(&works, script.replace("echo an image", "cat \"$home/image\"")).unwrap();
    let saved = run(&[
        "save-offline",
        text(&folder),
        "--model",
        MODEL,
        "--engine",
        text(&works),
        "--image",
        "there",
    ]);
    assert_eq!(code(&saved), 0, "{}", stderr(&saved));
    let load = || {
        let load = [
            "load-offline",
            text(&folder),
            "--into",
            text(&into),
            "--engine",
            text(&works),
        ];
        run(&load)
    };
    let tar = folder.join("image.tar");
    let (loaded, whole) = (home.path().join("loaded"), home.path().join("whole"));
    for change in [
        format!(
            "printf x | dd of={} bs=1 seek=6291455 conv=notrunc status=none",
            tar.display()
        ),
        format!("printf x >>{}", tar.display()),
        format!("truncate -s 6000000 {}", tar.display()),
    ] {
        fs::write(&tar, &image).unwrap();
        fs::write(home.path().join("meanwhile"), &change).unwrap();
        let refused = load();
        assert_eq!(code(&refused), 1, "{change}: {}", stderr(&refused));
        let error = stderr(&refused);
        assert!(
            error.contains("image.tar") && error.contains("was changed while it was loaded"),
            "{error}"
        );
        assert!(!whole.exists(), "the engine took it for whole");
        assert!(fs::metadata(&loaded).unwrap().len() < image.len() as u64);
    }
    fs::write(&tar, &image).unwrap();
    fs::remove_file(home.path().join("meanwhile")).unwrap();
    let whole_again = load();
    assert_eq!(code(&whole_again), 0, "{}", stderr(&whole_again));
    assert_eq!(fs::read(&loaded).unwrap(), image);
}

#[test]
fn a_signal_leaves_nothing_half_done_and_no_engine_behind() {
    let home = tempfile::tempdir().unwrap();
    let (folder, into) = (home.path().join("offline"), home.path().join("models"));
    let hangs = engine(home.path(), "save");
    let before = names(home.path());
    let start = |arguments: &[&str]| {
        let mut program = medvision(arguments);
        program
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let save = [
        "save-offline",
        text(&folder),
        "--model",
        MODEL,
        "--image",
        "there",
        "--engine",
    ];
    let saving = start(&[&save[..], &[text(&hangs)]].concat());
    let engine_process = hanging(home.path());
    signal(&saving, libc::SIGTERM);
    let ended = saving.wait_with_output().unwrap();
    assert_eq!(code(&ended), 130, "{}", stderr(&ended));
    assert!(
        stderr(&ended).contains("interrupted; nothing was written"),
        "{}",
        stderr(&ended)
    );
    assert!(!runs(engine_process));
    fs::remove_file(home.path().join("hangs")).unwrap();
    assert_eq!(names(home.path()), before);
    // Killed: the next run removes what was left.
    let mut saving = start(&[&save[..], &[text(&hangs)]].concat());
    let engine_process = hanging(home.path());
    saving.kill().unwrap();
    saving.wait().unwrap();
    // SAFETY: plain system call; the group of the engine that this test made and that nobody else stops now.
    unsafe { libc::kill(-engine_process, libc::SIGKILL) };
    fs::remove_file(home.path().join("hangs")).unwrap();
    assert!(names(home.path()).iter().any(|name| name.ends_with(".partial")));
    let hangs = engine(home.path(), "load");
    let saved = run(&[&save[..], &[text(&hangs)]].concat());
    assert_eq!(code(&saved), 0, "{}", stderr(&saved));
    assert!(!names(home.path()).iter().any(|name| name.ends_with(".partial")));
    // Models are whole before the image is loaded.
    let loading = start(&[
        "load-offline",
        text(&folder),
        "--into",
        text(&into),
        "--engine",
        text(&hangs),
    ]);
    let engine_process = hanging(home.path());
    signal(&loading, libc::SIGTERM);
    let ended = loading.wait_with_output().unwrap();
    assert_eq!(code(&ended), 130, "{}", stderr(&ended));
    assert!(!runs(engine_process) && !home.path().join("loaded").exists());
    assert_eq!(names(&into), ["qwen25-vl-nano"]);
    assert_eq!(
        names(&into.join("qwen25-vl-nano")),
        names(&Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL))
    );
}
