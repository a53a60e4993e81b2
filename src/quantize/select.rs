//! Which of the methods to use: both are measured on the calibration pages beside the original.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::{
    PageAccuracy, Watch,
    awq::pages_digest,
    documents::{DocumentAccuracy, document_accuracy, documents_digest},
    kept::Kept,
    measure_with,
    nf4::output_errors,
    run::BaseRun,
};
use crate::console::Unit;
use crate::data::{CalibrationPage, CalibrationPages};
use crate::fs::Manifest;
use crate::quant::Method;
use crate::records::{AwqAttempt, BnbSetup, Extra, QuantizationInfo, mib};
use crate::{Error, Result};

/// The original's name in stages and errors.
const ORIGINAL: &str = "the original";

/// Key of a method's [`PageAccuracy`] in the record.
const FIGURES: &str = "calibration";
/// Key of its [`DocumentAccuracy`].
const DOCUMENTS: &str = "documents";
/// Key of its [`LayerOutputErrors`](super::nf4::LayerOutputErrors).
const LAYER_OUTPUTS: &str = "layer_outputs";

/// What models are measured on, and what the original makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where the pages come from.
    pub source: String,
    /// How many AWQ was calibrated on.
    #[serde(default)]
    pub calibration_pages: usize,
    /// How many of them, evenly spread, all models were measured on.
    #[serde(default)]
    pub measured_pages: usize,
    /// sha256 over those.
    pub pages_sha256: String,
    /// sha256 over the documents.
    #[serde(default)]
    pub documents_sha256: String,
    /// The model before quantization on the pages; null where it could not be measured.
    pub base: Option<PageAccuracy>,
    /// The same on the documents.
    #[serde(default)]
    pub base_documents: Option<DocumentAccuracy>,
    /// What went wrong in measuring, word for word.
    pub error: Option<String>,
}

impl Calibration {
    /// Measures the methods that worked, and notes each one's figures in its part of the record.
    ///
    /// Nothing is measured where nothing has changed since the `earlier` record. What fails here costs no method its success.
    pub(super) fn new(
        run: &BaseRun<'_>,
        pages: &Result<CalibrationPages>,
        earlier: Option<&QuantizationInfo>,
        watch: Watch<'_>,
        (nf4, awq): (&mut BnbSetup, &mut AwqAttempt),
    ) -> Result<Option<Self>> {
        let Ok(calibration) = pages else {
            return Ok(None);
        };
        let pages = &spread(&calibration.pages, run.measured_pages);
        if pages.is_empty() {
            return Ok(None);
        }
        let mut this = Self {
            source: calibration.source.to_owned(),
            calibration_pages: calibration.pages.len(),
            measured_pages: pages.len(),
            pages_sha256: pages_digest(pages),
            documents_sha256: documents_digest(run)?,
            base: None,
            base_documents: None,
            error: None,
        };
        let earlier = earlier.filter(|info| this.same_pages(info));
        let made = [
            (
                Method::Nf4,
                nf4.success,
                earlier.map(|info| &info.bnb_setup.extra),
                &mut nf4.extra,
            ),
            (
                Method::Awq,
                awq.success,
                earlier.map(|info| &info.awq_attempt.extra),
                &mut awq.extra,
            ),
        ];
        let mut to_measure = Vec::new();
        for (method, success, earlier, extra) in made {
            let earlier = earlier.filter(|extra| figures(extra).is_some()).cloned();
            let changed = extra.get("up_to_date") == Some(&json!(false)) && run.wants(method);
            for key in [FIGURES, DOCUMENTS, LAYER_OUTPUTS] {
                extra.remove(key);
                if let Some(value) = earlier.as_ref().and_then(|extra| extra.get(key))
                    && success
                    && !changed
                {
                    extra.insert(key.to_owned(), value.clone());
                }
            }
            if success && (changed || earlier.is_none()) {
                to_measure.push((method, extra));
            }
        }
        if to_measure.is_empty() {
            let earlier = earlier.and_then(Self::of);
            this.base_documents = earlier
                .as_ref()
                .and_then(|earlier| earlier.base_documents.clone());
            this.base = earlier.and_then(|earlier| earlier.base);
            return Ok(Some(this));
        }
        this.measure(run, pages, watch, to_measure)?;
        Ok(Some(this))
    }

    /// Measures the original, then each method beside it; what a killed run finished is not measured again.
    fn measure(
        &mut self,
        run: &BaseRun<'_>,
        pages: &[CalibrationPage],
        watch: Watch<'_>,
        methods: Vec<(Method, &mut Extra)>,
    ) -> Result<()> {
        let device = run.selected.device;
        let mut kept = Kept::open(run.project, &self.identity(run)?);
        let page_count = pages.len() as u64;
        let on_pages = |kept: &mut Kept, who: &str, dir: &Path, original: Option<&[Tensor]>| {
            kept.or_measure(&format!("{who}, pages"), || {
                watch.begin(&format!("measuring {who}"), Unit::Of("pages"), page_count)?;
                Ok(measure_with(dir, None, pages, device, original, watch)?.accuracy)
            })
        };
        let on_documents = |kept: &mut Kept, who: &str, dir: &Path| {
            kept.or_measure(&format!("{who}, documents"), || {
                watch.begin(&format!("{who} reads the documents"), Unit::Of("documents"), 0)?;
                document_accuracy(run, dir, watch)
            })
        };
        let original = self.note(ORIGINAL, original(&mut kept, run.model, pages, device, watch))?;
        self.base_documents = self.note(ORIGINAL, on_documents(&mut kept, ORIGINAL, run.model))?;
        for (method, extra) in methods {
            let (name, folder) = (method.name(), run.folder(method));
            let states = original.as_ref().map(|(_, states)| &states[..]);
            let accuracy = self.note(name, on_pages(&mut kept, name, &folder, states))?;
            extra.insert(FIGURES.to_owned(), json!(accuracy));
            let documents = self.note(name, on_documents(&mut kept, name, &folder))?;
            extra.insert(DOCUMENTS.to_owned(), json!(documents));
            if method == Method::Nf4 {
                let errors = kept.or_measure("layers", || {
                    watch.begin("comparing the layers' outputs", Unit::Of("pages"), page_count)?;
                    output_errors(run.model, &folder, pages, device, watch)
                });
                let errors = self.note(name, errors)?;
                extra.insert(LAYER_OUTPUTS.to_owned(), json!(errors));
            }
        }
        self.base = original.map(|(accuracy, _)| accuracy);
        Ok(())
    }

    /// All that the figures depend on.
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

    /// What an earlier record holds.
    fn of(info: &QuantizationInfo) -> Option<Self> {
        serde_json::from_value(info.extra.get(FIGURES)?.clone()).ok()
    }

    /// Whether an earlier record's figures are of the same pages and documents.
    fn same_pages(&self, info: &QuantizationInfo) -> bool {
        Self::of(info).is_some_and(|earlier| {
            earlier.pages_sha256 == self.pages_sha256 && earlier.documents_sha256 == self.documents_sha256
        })
    }

    /// The figure, or a note of the error.
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

/// What the original makes of the pages: its figures, and its hidden states, which the others' are compared with.
fn original(
    kept: &mut Kept,
    model: &Path,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<(PageAccuracy, Vec<Tensor>)> {
    let name = format!("{ORIGINAL}, pages");
    if let (Some(figures), Some(states)) = (kept.get(&name), kept.states()) {
        return Ok((figures, states));
    }
    watch.begin(
        &format!("measuring {ORIGINAL}"),
        Unit::Of("pages"),
        pages.len() as u64,
    )?;
    let measured = measure_with(model, None, pages, device, None, watch)?;
    kept.keep_states(&measured.hidden)?;
    kept.put(&name, &measured.accuracy)?;
    Ok((measured.accuracy, measured.hidden))
}

/// `count` of `pages`, evenly spread.
fn spread(pages: &[CalibrationPage], count: usize) -> Vec<CalibrationPage> {
    let count = count.min(pages.len());
    (0..count)
        .map(|i| pages[i * pages.len() / count].clone())
        .collect()
}

/// A method's figures in its part of the record.
fn figures(extra: &Extra) -> Option<PageAccuracy> {
    serde_json::from_value(extra.get(FIGURES)?.clone()).ok()
}

/// The method to use, and why: the more accurate one, unless `asked` names one that was made.
pub(super) fn choose(asked: Option<Method>, nf4: &BnbSetup, awq: &AwqAttempt) -> Option<(Method, String)> {
    match (asked, nf4.success, awq.success) {
        (Some(Method::Nf4), true, _) => Some((Method::Nf4, "asked for with --method".to_owned())),
        (Some(Method::Awq), _, true) => Some((Method::Awq, "asked for with --method".to_owned())),
        (_, true, false) => Some((Method::Nf4, "the only one that was made".to_owned())),
        (_, false, true) => Some((Method::Awq, "the only one that was made".to_owned())),
        (_, true, true) => Some(more_accurate(&nf4.extra, &awq.extra)),
        (_, false, false) => None,
    }
}

fn more_accurate(nf4: &Extra, awq: &Extra) -> (Method, String) {
    let (Some(a), Some(b)) = (figures(nf4), figures(awq)) else {
        return (Method::Nf4, "the accuracy of both was not measured".to_owned());
    };
    let wrong = |figures: &PageAccuracy| (1.0 - figures.token_accuracy_pct / 100.0) * figures.tokens as f64;
    let fewer = wrong(&a) - wrong(&b);
    // Where both read the same tokens, the standard error of the difference is at most the root of both's wrong ones.
    let chance = (wrong(&a) + wrong(&b)).sqrt();
    let by_chance = fewer.abs() < chance.max(1e-6);
    // The logits' distance from the original is an average over every token's whole vocabulary, and hardly changes with
    // the pages, where tokens that are near to both sides of a choice do.
    let nearer = a.outputs.as_ref().zip(b.outputs.as_ref());
    let nearer = nearer.map(|(a, b)| b.output_rmse < a.output_rmse);
    let awq_is_better = if by_chance {
        nearer.unwrap_or(b.mean_loss < a.mean_loss)
    } else {
        fewer > 0.0
    };
    let method = if awq_is_better { Method::Awq } else { Method::Nf4 };
    let size = |extra: &Extra| {
        let bytes = extra.get("output_bytes").and_then(serde_json::Value::as_u64);
        bytes.map_or(String::new(), |bytes| format!(", {} MiB", mib(bytes)))
    };
    let line = |figures: &PageAccuracy, extra: &Extra| {
        let outputs = figures.outputs.as_ref();
        format!(
            "{:.3} % of tokens right, loss {:.5}{}{}",
            figures.token_accuracy_pct,
            figures.mean_loss,
            outputs.map_or(String::new(), |outputs| format!(
                ", logits off by {:.3}",
                outputs.output_rmse
            )),
            size(extra)
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
        line(&a, nf4),
        line(&b, awq)
    );
    (method, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(nf4: (bool, f64, f64), awq: (bool, f64, f64)) -> (BnbSetup, AwqAttempt) {
        let extra = |(_, token_accuracy_pct, mean_loss)| {
            let figures = PageAccuracy {
                pages: 3,
                tokens: 1000,
                token_accuracy_pct,
                mean_loss,
                outputs: None,
            };
            Extra::from_iter([
                (FIGURES.to_owned(), json!(figures)),
                ("output_bytes".to_owned(), json!(3 << 20)),
            ])
        };
        let nf4 = serde_json::from_value::<BnbSetup>(json!({
            "method": "bitsandbytes_NF4", "success": nf4.0, "time_seconds": null, "load_time_seconds": null,
            "output_dir": null, "vram_mb": null, "total_params": null, "error": null, "calibration": extra(nf4)[FIGURES],
        }));
        let awq = serde_json::from_value::<AwqAttempt>(json!({
            "method": "AWQ_INT4", "success": awq.0, "time_seconds": null, "output_dir": null, "error": null,
            "calibration": extra(awq)[FIGURES], "output_bytes": extra(awq)["output_bytes"],
        }));
        (nf4.unwrap(), awq.unwrap())
    }

    #[test]
    fn what_may_be_chance_is_decided_by_the_logits_where_they_are_known() {
        let (mut nf4, mut awq) = records((true, 98.9, 0.1), (true, 98.8, 0.2));
        for (extra, rmse) in [(&mut nf4.extra, 0.95), (&mut awq.extra, 0.85)] {
            let figures = extra.get_mut(FIGURES).and_then(Value::as_object_mut).unwrap();
            figures.extend([
                ("output_cosine".to_owned(), json!(0.99)),
                ("output_rmse".to_owned(), json!(rmse)),
                ("output_max_abs".to_owned(), json!(9.0)),
            ]);
        }
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(
            method == Method::Awq && reason.contains("by the distance") && reason.contains("off by 0.850")
        );
        nf4.extra[FIGURES]["token_accuracy_pct"] = json!(99.9);
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(method == Method::Nf4 && !reason.contains("by the"), "{reason}");
    }

    #[test]
    fn the_more_accurate_one_is_used_unless_one_is_asked_for() {
        let chosen = |asked, nf4, awq| {
            let (nf4, awq) = records(nf4, awq);
            choose(asked, &nf4, &awq)
        };
        let (good, bad) = ((true, 99.0, 0.1), (true, 98.5, 0.1));
        let failed = (false, 0.0, 0.0);
        for (asked, nf4, awq, expected, word) in [
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
            let (method, reason) = chosen(asked, nf4, awq).unwrap();
            assert!(
                method == expected && reason.contains(word),
                "{method:?}: {reason}"
            );
        }
        assert_eq!(chosen(None, failed, failed), None);
        let (mut nf4, awq) = records(good, bad);
        nf4.extra.clear();
        let (method, reason) = choose(None, &nf4, &awq).unwrap();
        assert!(method == Method::Nf4 && reason.contains("not measured"));
    }
}
