//! The plot of the loss.

use plotters::prelude::*;

use super::progress::Validation;
use crate::records::LossPoint;

const SIZE: (u32, u32) = (880, 360);
/// From Okabe and Ito's palette, which is safe for colour-blind readers.
const TRAINING: RGBColor = RGBColor(0, 114, 178);
const VALIDATION: RGBColor = RGBColor(230, 159, 0);

/// Plots training and validation loss by step, as SVG; `None` with fewer than two points.
pub(super) fn draw(losses: &[LossPoint], validations: &[Validation]) -> Option<String> {
    let training: Vec<(f64, f64)> = losses
        .iter()
        .filter(|point| point.loss.is_finite())
        .map(|point| (point.step as f64, point.loss))
        .collect();
    let validation: Vec<(f64, f64)> = validations
        .iter()
        .map(|validation| (validation.step as f64, validation.loss))
        .collect();
    let points = || training.iter().chain(&validation);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max);
    let (last, highest) = (most(|point| point.0), most(|point| point.1));
    if training.len() < 2 || highest <= 0.0 {
        return None;
    }
    let mut text = String::new();
    let drawn = {
        let canvas = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let paint = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
            canvas.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&canvas)
                .margin(12)
                .margin_top(40)
                .set_label_area_size(LabelAreaPosition::Left, 64)
                .set_label_area_size(LabelAreaPosition::Bottom, 44)
                .build_cartesian_2d(0.0..last, 0.0..highest * 1.05)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(217, 226, 236))
                .x_desc("optimizer step")
                .y_desc("loss per token")
                .label_style(("sans-serif", 13))
                .draw()?;
            chart.draw_series(LineSeries::new(
                training.iter().copied(),
                TRAINING.stroke_width(2),
            ))?;
            chart.draw_series(LineSeries::new(
                validation.iter().copied(),
                VALIDATION.stroke_width(2),
            ))?;
            chart.draw_series(
                validation
                    .iter()
                    .map(|point| Circle::new(*point, 4, VALIDATION.filled())),
            )?;
            for (x, name, colour) in [(76, "training", TRAINING), (176, "validation", VALIDATION)] {
                canvas.draw(&Rectangle::new([(x, 16), (x + 12, 28)], colour.filled()))?;
                canvas.draw_text(name, &("sans-serif", 13).into_font().color(&BLACK), (x + 18, 15))?;
            }
            canvas.present()
        };
        paint()
    };
    match drawn {
        Ok(()) => Some(text),
        Err(error) => {
            tracing::warn!(%error, "cannot plot the loss");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_needs_two_points() {
        let point = |step, loss| LossPoint { step, loss };
        assert_eq!(draw(&[point(1, 2.0)], &[]), None);
        let validation = Validation {
            step: 2,
            loss: 1.5,
            token_accuracy_pct: 50.0,
            document_accuracy_pct: None,
        };
        let svg = draw(&[point(1, 2.0), point(2, f64::NAN), point(3, 1.0)], &[validation]).unwrap();
        assert!(svg.contains("<polyline") && svg.contains("<circle") && svg.contains("validation"));
    }
}
