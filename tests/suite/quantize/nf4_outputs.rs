//! What each quantized layer makes of what it reads on a page.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use medical_vision::data::calibration_pages;
use medical_vision::project::Project;
use medical_vision::quant::nf4::QuantType;
use medical_vision::quantize::{
    Watch,
    nf4::{Nf4Options, output_errors, quantize_folder},
};
use tch::Device;

/// Mean cosine and largest difference over the layers of the embedded model, quantized with `options`.
fn errors(options: &Nf4Options) -> (usize, f64, f64) {
    let home = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let target = home.path().join("made");
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    quantize_folder(&model, &target, options, watch).unwrap();
    let project = Project::open(Some(home.path())).unwrap();
    let pages = calibration_pages(&project, 1).unwrap().pages;
    let errors = output_errors(&model, &target, &pages, Device::Cpu, Watch::none()).unwrap();
    assert!(errors.layers.contains_key(errors.worst.as_ref().unwrap()));
    let errors = errors.layers;
    for (name, error) in &errors {
        assert!(error.rows > 8 && error.rows <= 32, "{name}: {error:?}");
        assert!(error.cosine > 0.9 && error.cosine < 1.0, "{name}: {error:?}");
        assert!(
            error.rmse > 0.0 && error.rmse < error.max_abs,
            "{name}: {error:?}"
        );
    }
    let cosines: f64 = errors.values().map(|error| error.cosine).sum();
    let largest = errors.values().map(|error| error.max_abs).fold(0.0, f64::max);
    (errors.len(), cosines / errors.len() as f64, largest)
}

#[test]
fn every_layers_outputs_are_compared_and_coarser_blocks_are_worse() {
    let (layers, fine, _) = errors(&Nf4Options::default());
    // Six layers of seven, six blocks of five, two of the merger.
    assert_eq!(layers, 74);
    assert!(fine > 0.99, "{fine}");
    let coarse = Nf4Options {
        quant_type: QuantType::Fp4,
        blocksize: 4096,
        skip_modules: vec!["visual".to_owned()],
        ..Nf4Options::default()
    };
    let (layers, cosine, _) = errors(&coarse);
    assert_eq!(layers, 42);
    assert!(cosine < fine, "{cosine} {fine}");
}
