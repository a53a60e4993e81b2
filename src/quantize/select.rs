//! Measures the quantized models beside the original, and chooses the method to use.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::{
    PageAccuracy, Watch,
    awq::pages_digest,
    documents::{DocumentAccuracy, document_accuracy, documents_digest},
    measure_with,
    nf4::{LayerOutputErrors, output_errors},
    run::BaseRun,
    saved::SavedMeasurements,
};
use crate::console::Unit;
use crate::data::{CalibrationPage, CalibrationPages};
use crate::fs::Manifest;
use crate::quant::Method;
use crate::records::{Extra, QuantizationInfo, mib};
use crate::{Error, Result};

/// The original's name in stages and errors.
const ORIGINAL: &str = "the original";

/// Key of a method's [`PageAccuracy`] in the record.
const PAGES: &str = "calibration";
/// Key of its [`DocumentAccuracy`].
const DOCUMENTS: &str = "documents";
/// Key of its [`LayerOutputErrors`].
const LAYER_OUTPUTS: &str = "layer_outputs";

/// What the models are measured on, and the original's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where the pages come from.
    pub source: String,
    /// Number of pages that AWQ was calibrated on.
    #[serde(default)]
    pub calibration_pages: usize,
    /// Number of those, evenly spaced, that all models were measured on.
    #[serde(default)]
    pub measured_pages: usize,
    /// sha256 over the measured pages.
    pub pages_sha256: String,
    /// sha256 over the documents.
    #[serde(default)]
    pub documents_sha256: String,
    /// The model before quantization on the pages; null if measuring failed.
    pub base: Option<PageAccuracy>,
    /// The same on the documents.
    #[serde(default)]
    pub base_documents: Option<DocumentAccuracy>,
    /// Errors of measuring, verbatim.
    pub error: Option<String>,
}

/// What was measured of a method; `None` where that failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    pages: Option<PageAccuracy>,
    documents: Option<DocumentAccuracy>,
    /// NF4's only.
    layers: Option<LayerOutputErrors>,
}

impl Figures {
    /// Those of an earlier run in its record of a method.
    fn read(extra: &Extra) -> Option<Self> {
        fn part<T: serde::de::DeserializeOwned>(extra: &Extra, key: &str) -> Option<T> {
            serde_json::from_value(extra.get(key)?.clone()).ok()
        }
        extra.contains_key(PAGES).then(|| Self {
            pages: part(extra, PAGES),
            documents: part(extra, DOCUMENTS),
            layers: part(extra, LAYER_OUTPUTS),
        })
    }

    fn write(&self, method: Method, extra: &mut Extra) {
        extra.insert(PAGES.to_owned(), json!(self.pages));
        extra.insert(DOCUMENTS.to_owned(), json!(self.documents));
        if method == Method::Nf4 {
            extra.insert(LAYER_OUTPUTS.to_owned(), json!(self.layers));
        }
    }
}

/// A method in this run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    pub(super) method: Method,
    /// Its folder is complete and loads.
    pub(super) success: bool,
    /// This run wrote its folder.
    pub(super) rewritten: bool,
    /// Bytes of its folder's weights.
    pub(super) output_bytes: Option<u64>,
    pub(super) figures: Option<Figures>,
}

impl Candidate {
    /// One that this run has not written yet.
    pub(super) fn new(method: Method) -> Self {
        Self {
            method,
            success: false,
            rewritten: false,
            output_bytes: None,
            figures: None,
        }
    }

    /// One that this run leaves as an earlier run's record describes it.
    pub(super) fn of_record(method: Method, success: bool, extra: &Extra) -> Self {
        Self {
            success,
            output_bytes: extra.get("output_bytes").and_then(Value::as_u64),
            figures: Figures::read(extra),
            ..Self::new(method)
        }
    }

    /// Writes its figures, and no earlier ones, to its part of the record.
    pub(super) fn write_figures(&self, extra: &mut Extra) {
        for key in [PAGES, DOCUMENTS, LAYER_OUTPUTS] {
            extra.remove(key);
        }
        if let Some(figures) = &self.figures {
            figures.write(self.method, extra);
        }
    }

    fn pages(&self) -> Option<&PageAccuracy> {
        self.figures.as_ref()?.pages.as_ref()
    }
}

/// Measures the candidates that have a folder beside the original; `None` without calibration pages.
///
/// A candidate keeps the figures of the `earlier` record if neither its folder nor pages and documents have changed. An error of
/// measuring is noted in the result.
pub(super) fn measure_candidates(
    run: &BaseRun<'_>,
    pages: &Result<CalibrationPages>,
    earlier: Option<&QuantizationInfo>,
    watch: Watch<'_>,
    candidates: [&mut Candidate; 2],
) -> Result<Option<Calibration>> {
    let Ok(calibration) = pages else {
        return Ok(None);
    };
    let pages = &spread(&calibration.pages, run.measured_pages);
    if pages.is_empty() {
        return Ok(None);
    }
    let mut result = Calibration {
        source: calibration.source.to_owned(),
        calibration_pages: calibration.pages.len(),
        measured_pages: pages.len(),
        pages_sha256: pages_digest(pages),
        documents_sha256: documents_digest(run)?,
        base: None,
        base_documents: None,
        error: None,
    };
    let earlier = earlier.filter(|info| result.same_pages(info));
    let mut to_measure = Vec::new();
    for candidate in candidates {
        let extra = earlier.map(|info| match candidate.method {
            Method::Nf4 => &info.bnb_setup.extra,
            Method::Awq => &info.awq_attempt.extra,
        });
        let figures = extra.and_then(Figures::read);
        candidate.figures =
            figures.filter(|figures| figures.pages.is_some() && candidate.success && !candidate.rewritten);
        if candidate.success && candidate.figures.is_none() {
            to_measure.push(candidate);
        }
    }
    if to_measure.is_empty() {
        if let Some(earlier) = earlier.and_then(Calibration::of) {
            (result.base, result.base_documents) = (earlier.base, earlier.base_documents);
        }
    } else {
        result.measure(run, pages, watch, to_measure)?;
    }
    Ok(Some(result))
}

impl Calibration {
    /// Measures the original, then each candidate. What a killed run finished is not measured again.
    fn measure(
        &mut self,
        run: &BaseRun<'_>,
        pages: &[CalibrationPage],
        watch: Watch<'_>,
        candidates: Vec<&mut Candidate>,
    ) -> Result<()> {
        let device = run.selected.device;
        let mut saved = SavedMeasurements::open(run.project, &self.identity(run)?);
        let page_count = pages.len() as u64;
        let on_pages = |saved: &mut SavedMeasurements, who: &str, dir: &Path, original: Option<&[Tensor]>| {
            saved.or_measure(&format!("{who}, pages"), || {
                watch.begin(&format!("measuring {who}"), Unit::Of("pages"), page_count)?;
                Ok(measure_with(dir, None, pages, device, original, watch)?.accuracy)
            })
        };
        let on_documents = |saved: &mut SavedMeasurements, who: &str, dir: &Path| {
            saved.or_measure(&format!("{who}, documents"), || {
                watch.begin(&format!("{who} reads the documents"), Unit::Of("documents"), 0)?;
                document_accuracy(run, dir, watch)
            })
        };
        let original = self.note(ORIGINAL, original(&mut saved, run.model, pages, device, watch))?;
        self.base_documents = self.note(ORIGINAL, on_documents(&mut saved, ORIGINAL, run.model))?;
        for candidate in candidates {
            let (name, folder) = (candidate.method.name(), run.folder(candidate.method));
            let states = original.as_ref().map(|(_, states)| &states[..]);
            let on_pages = self.note(name, on_pages(&mut saved, name, &folder, states))?;
            let on_documents = self.note(name, on_documents(&mut saved, name, &folder))?;
            let layers = match candidate.method {
                Method::Awq => None,
                Method::Nf4 => {
                    let errors = saved.or_measure("layers", || {
                        watch.begin("comparing the layers' outputs", Unit::Of("pages"), page_count)?;
                        output_errors(run.model, &folder, pages, device, watch)
                    });
                    self.note(name, errors)?
                }
            };
            candidate.figures = Some(Figures {
                pages: on_pages,
                documents: on_documents,
                layers,
            });
        }
        self.base = original.map(|(accuracy, _)| accuracy);
        Ok(())
    }

    /// Everything that the figures depend on.
    fn identity(&self, run: &BaseRun<'_>) -> Result<Value> {
        let manifest =
            |method| Manifest::read(&run.folder(method)).map(|manifest| (manifest.origin, manifest.files));
        Ok(json!({
            "pages": self.pages_sha256,
            "documents": self.documents_sha256,
            "model": run.model.canonicalize().unwrap_or_else(|_| run.model.to_owned()),
            "nf4": manifest(Method::Nf4),
            "awq": manifest(Method::Awq),
            "device": run.selected.description,
            "tool": crate::version::version(),
        }))
    }

    /// That of an earlier record.
    fn of(info: &QuantizationInfo) -> Option<Self> {
        serde_json::from_value(info.extra.get("calibration")?.clone()).ok()
    }

    /// Whether an earlier record's figures are of the same pages and documents.
    fn same_pages(&self, info: &QuantizationInfo) -> bool {
        Self::of(info).is_some_and(|earlier| {
            earlier.pages_sha256 == self.pages_sha256 && earlier.documents_sha256 == self.documents_sha256
        })
    }

    /// The figure; an error is noted.
    fn note<T>(&mut self, name: &str, measured: Result<T>) -> Result<Option<T>> {
        match measured {
            Ok(measured) => Ok(Some(measured)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let text = format!("{name}: {error}");
                let so_far = self.error.take();
                self.error = Some(so_far.map_or(text.clone(), |so_far| format!("{so_far}; {text}")));
                Ok(None)
            }
        }
    }
}

/// The original's figures on the pages and its hidden states, which the others' are compared with.
fn original(
    saved: &mut SavedMeasurements,
    model: &Path,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<(PageAccuracy, Vec<Tensor>)> {
    let name = format!("{ORIGINAL}, pages");
    if let (Some(figures), Some(states)) = (saved.get(&name), saved.states()) {
        return Ok((figures, states));
    }
    watch.begin(
        &format!("measuring {ORIGINAL}"),
        Unit::Of("pages"),
        pages.len() as u64,
    )?;
    let measured = measure_with(model, None, pages, device, None, watch)?;
    saved.save_states(&measured.hidden)?;
    saved.save(&name, &measured.accuracy)?;
    Ok((measured.accuracy, measured.hidden))
}

/// `count` of `pages`, evenly spaced.
fn spread(pages: &[CalibrationPage], count: usize) -> Vec<CalibrationPage> {
    let count = count.min(pages.len());
    (0..count)
        .map(|i| pages[i * pages.len() / count].clone())
        .collect()
}

/// The method to use, and why: the more accurate one, unless `requested` is one that succeeded.
pub(super) fn choose(
    requested: Option<Method>,
    nf4: &Candidate,
    awq: &Candidate,
) -> Option<(Method, String)> {
    match (requested, nf4.success, awq.success) {
        (Some(Method::Nf4), true, _) => Some((Method::Nf4, "asked for with --method".to_owned())),
        (Some(Method::Awq), _, true) => Some((Method::Awq, "asked for with --method".to_owned())),
        (_, true, false) => Some((Method::Nf4, "the only one that was made".to_owned())),
        (_, false, true) => Some((Method::Awq, "the only one that was made".to_owned())),
        (_, true, true) => Some(more_accurate(nf4, awq)),
        (_, false, false) => None,
    }
}

fn more_accurate(nf4: &Candidate, awq: &Candidate) -> (Method, String) {
    let (Some(a), Some(b)) = (nf4.pages(), awq.pages()) else {
        return (Method::Nf4, "the accuracy of both was not measured".to_owned());
    };
    let wrong = |figures: &PageAccuracy| (1.0 - figures.token_accuracy_pct / 100.0) * figures.tokens as f64;
    let fewer = wrong(a) - wrong(b);
    // Both are measured on the same tokens: the standard error of the difference is at most the root of all wrong ones.
    let chance = (wrong(a) + wrong(b)).sqrt();
    let by_chance = fewer.abs() < chance.max(1e-6);
    // The distance of the logits averages over the whole vocabulary at each token, so it varies less between pages than the
    // number of tokens near a decision boundary.
    let nearer = a.outputs.as_ref().zip(b.outputs.as_ref());
    let nearer = nearer.map(|(a, b)| b.output_rmse < a.output_rmse);
    let awq_is_better = if by_chance {
        nearer.unwrap_or(b.mean_loss < a.mean_loss)
    } else {
        fewer > 0.0
    };
    let method = if awq_is_better { Method::Awq } else { Method::Nf4 };
    let size = |candidate: &Candidate| {
        let bytes = candidate.output_bytes;
        bytes.map_or(String::new(), |bytes| format!(", {} MiB", mib(bytes)))
    };
    let line = |figures: &PageAccuracy, candidate: &Candidate| {
        let outputs = figures.outputs.as_ref();
        format!(
            "{:.3} % of tokens right, loss {:.5}{}{}",
            figures.token_accuracy_pct,
            figures.mean_loss,
            outputs.map_or(String::new(), |outputs| format!(
                ", logits off by {:.3}",
                outputs.output_rmse
            )),
            size(candidate)
        )
    };
    let reason = format!(
        "the more accurate on {} calibration page{}{}: NF4 {}; AWQ {}",
        a.pages,
        if a.pages == 1 { "" } else { "s" },
        match (by_chance, nearer) {
            (false, _) => "",
            (true, Some(_)) =>
                ", by the distance from the original's logits: so few tokens more may be chance",
            (true, None) => ", by the loss: so few tokens more may be chance",
        },
        line(a, nf4),
        line(b, awq)
    );
    (method, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::OutputError;

    fn candidates(nf4: (bool, f64, f64), awq: (bool, f64, f64)) -> (Candidate, Candidate) {
        let candidate = |method, (success, token_accuracy_pct, mean_loss)| Candidate {
            success,
            output_bytes: Some(3 << 20),
            figures: Some(Figures {
                pages: Some(PageAccuracy {
                    pages: 3,
                    tokens: 1000,
                    token_accuracy_pct,
                    mean_loss,
                    outputs: None,
                }),
                documents: None,
                layers: None,
            }),
            ..Candidate::new(method)
        };
        (candidate(Method::Nf4, nf4), candidate(Method::Awq, awq))
    }

    fn pages(candidate: &mut Candidate) -> &mut PageAccuracy {
        candidate.figures.as_mut().unwrap().pages.as_mut().unwrap()
    }

    #[test]
    fn figures_are_read_from_a_record_as_they_were_written() {
        let (mut nf4, mut awq) = candidates((true, 98.9, 0.1), (true, 98.8, 0.2));
        pages(&mut nf4).outputs = Some(OutputError {
            output_cosine: 0.99,
            output_rmse: 0.95,
            output_max_abs: 9.0,
        });
        pages(&mut awq).mean_loss = 0.1 + 0.2;
        for candidate in [nf4, awq] {
            let mut extra = Extra::from_iter([("output_bytes".to_owned(), json!(3 << 20))]);
            candidate.write_figures(&mut extra);
            assert_eq!(Candidate::of_record(candidate.method, true, &extra), candidate);
            assert_eq!(extra.contains_key(LAYER_OUTPUTS), candidate.method == Method::Nf4);
            Candidate::new(candidate.method).write_figures(&mut extra);
            assert_eq!(extra.len(), 1, "{extra:?}");
        }
    }

    #[test]
    fn differences_within_chance_are_decided_by_logit_distance() {
        let (mut nf4, mut awq) = candidates((true, 98.9, 0.1), (true, 98.8, 0.2));
        for (candidate, output_rmse) in [(&mut nf4, 0.95), (&mut awq, 0.85)] {
            pages(candidate).outputs = Some(OutputError {
                output_cosine: 0.99,
                output_rmse,
                output_max_abs: 9.0,
            });
        }
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(
            method == Method::Awq && reason.contains("by the distance") && reason.contains("off by 0.850")
        );
        pages(&mut nf4).token_accuracy_pct = 99.9;
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(method == Method::Nf4 && !reason.contains("by the"), "{reason}");
    }

    #[test]
    fn the_more_accurate_method_is_chosen_unless_one_is_requested() {
        let chosen = |requested, nf4, awq| {
            let (nf4, awq) = candidates(nf4, awq);
            choose(requested, &nf4, &awq)
        };
        let (good, bad) = ((true, 99.0, 0.1), (true, 98.5, 0.1));
        let failed = (false, 0.0, 0.0);
        for (requested, nf4, awq, expected, word) in [
            (None, good, bad, Method::Nf4, "NF4 99.000 % of tokens right"),
            (
                None,
                bad,
                good,
                Method::Awq,
                "AWQ 99.000 % of tokens right, loss 0.10000, 3 MiB",
            ),
            (None, good, (true, 99.0, 0.09), Method::Awq, "3 calibration pages"),
            (
                None,
                (true, 99.0, 0.2),
                (true, 98.8, 0.1),
                Method::Awq,
                "by the loss",
            ),
            (
                None,
                (true, 98.8, 0.1),
                (true, 99.0, 0.2),
                Method::Nf4,
                "by the loss",
            ),
            (None, good, good, Method::Nf4, "loss"),
            (Some(Method::Nf4), bad, good, Method::Nf4, "--method"),
            (Some(Method::Awq), good, bad, Method::Awq, "--method"),
            (Some(Method::Awq), good, failed, Method::Nf4, "only one"),
            (None, failed, bad, Method::Awq, "only one"),
        ] {
            let (method, reason) = chosen(requested, nf4, awq).unwrap();
            assert!(
                method == expected && reason.contains(word),
                "{method:?}: {reason}"
            );
        }
        assert_eq!(chosen(None, failed, failed), None);
        let (mut nf4, awq) = candidates(good, bad);
        nf4.figures = None;
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(method == Method::Nf4 && reason.contains("not measured"));
    }
}
