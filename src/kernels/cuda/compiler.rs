//! NVRTC: CUDA C++ → machine code for one compute capability.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::device::{folder_in_use, libtorch_folder};

type Status = c_int;
type Program = *mut c_void;

/// Functions of NVRTC that are used here (<https://docs.nvidia.com/cuda/nvrtc/>).
struct Nvrtc {
    create_program: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile_program: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    get_program_log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    get_program_log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    get_cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    get_cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    destroy_program: unsafe extern "C" fn(*mut Program) -> Status,
    /// Keep the functions above loaded; the second is a library that the compiler loads by name.
    _libraries: (Library, Option<Library>),
}

/// Machine code of `source` for a GPU of this compute capability; `options` come after those of the architecture. The error is for a log.
pub(super) fn compile(source: &str, capability: (i32, i32), more: &[String]) -> Result<Vec<u8>, String> {
    static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    let nvrtc = NVRTC.get_or_init(Nvrtc::load).as_ref().map_err(Clone::clone)?;
    let (major, minor) = capability;
    let options = [
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".to_owned(),
    ];
    let options: Vec<String> = options.into_iter().chain(more.iter().cloned()).collect();
    nvrtc.compile(source, &options)
}

impl Nvrtc {
    fn load() -> Result<Self, String> {
        let folders = [folder_in_use("libcudart.so"), wheels()];
        let mut reason = "its folder is unknown".to_owned();
        for folder in folders.into_iter().flatten() {
            match Self::load_from(&folder) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => reason = error,
            }
        }
        Err(format!("libnvrtc cannot be loaded: {reason}"))
    }

    fn load_from(folder: &Path) -> Result<Self, String> {
        let open = |prefix: &str| {
            let path = file(folder, prefix).ok_or_else(|| format!("no {prefix} in {}", folder.display()))?;
            // SAFETY: NVIDIA's own library, next to the CUDA runtime that this process already uses.
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| error.to_string())
        };
        let builtins = open("libnvrtc-builtins.so.").ok();
        let library = open("libnvrtc.so.")?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's C signature in NVIDIA's documentation.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            create_program: function!("nvrtcCreateProgram"),
            compile_program: function!("nvrtcCompileProgram"),
            get_program_log_size: function!("nvrtcGetProgramLogSize"),
            get_program_log: function!("nvrtcGetProgramLog"),
            get_cubin_size: function!("nvrtcGetCUBINSize"),
            get_cubin: function!("nvrtcGetCUBIN"),
            destroy_program: function!("nvrtcDestroyProgram"),
            _libraries: (library, builtins),
        })
    }

    fn compile(&self, source: &str, options: &[String]) -> Result<Vec<u8>, String> {
        let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let source = text(source)?;
        let options = options
            .iter()
            .map(|option| text(option))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: the source is a terminated string; there are no headers, so that their lists may be null.
        let status = unsafe {
            (self.create_program)(
                &mut program,
                source.as_ptr(),
                std::ptr::null(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if status != 0 {
            return Err(format!("NVRTC refuses the program (error {status})"));
        }
        // SAFETY: the program was just created; the options are terminated strings that outlive the call.
        let status = unsafe { (self.compile_program)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let made = if status == 0 {
            self.bytes(program, self.get_cubin_size, self.get_cubin)
        } else {
            let log = self.bytes(program, self.get_program_log_size, self.get_program_log);
            let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
            Err(format!(
                "NVRTC error {status}: {}",
                log.trim_matches(['\0', '\n'])
            ))
        };
        // SAFETY: nothing uses the program any more.
        unsafe { (self.destroy_program)(&mut program) };
        made
    }

    fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program lives and the pointer is valid for the call.
        if unsafe { size(program, &mut length) } != 0 {
            return Err("NVRTC does not return the size of its output".to_owned());
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: as many bytes as NVRTC asked for.
        match unsafe { get(program, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            status => Err(format!("NVRTC does not return its output (error {status})")),
        }
    }
}

/// Folders of CUDA's libraries next to libtorch in PyPI's wheels.
fn wheels() -> Option<PathBuf> {
    let site = libtorch_folder()?.parent()?.parent()?.join("nvidia");
    let folders = fs::read_dir(site).ok()?.flatten();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path().join("lib")).collect();
    folders.retain(|folder| file(folder, "libnvrtc.so.").is_some());
    folders.sort_unstable();
    folders.pop()
}

/// The first library of `folder` whose name begins with `prefix`.
fn file(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut names: Vec<PathBuf> = entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
        })
        .map(|entry| entry.path())
        .collect();
    names.sort_unstable();
    names.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs no GPU, but NVRTC, which a machine without one lacks as a rule.
    #[test]
    fn the_kernels_compile_for_every_gpu_where_the_compiler_is_there() {
        for capability in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            for value_type in 0..3 {
                let defines = [format!("-DVALUE_TYPE={value_type}")];
                match compile(super::super::launch::SOURCE, capability, &defines) {
                    Ok(code) => assert!(code.starts_with(b"\x7fELF")),
                    Err(reason) => assert!(reason.starts_with("libnvrtc cannot be loaded"), "{reason}"),
                }
            }
        }
    }
}
