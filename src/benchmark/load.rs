//! Whether benchmarks that stand side by side were measured on a machine that was about as busy.

use crate::records::Benchmark;

/// Other programs' shares of the processors that differ by more than this do not go side by side without a word.
const SHARE: f64 = 0.1;
/// The same for load averages, of one processor, where the shares are not known.
const AVERAGE: f64 = 0.25;

/// A sentence where `records`, with their names, were measured under different load; what does not tell its load is left out.
pub fn load_note(records: &[(&str, &Benchmark)]) -> Option<String> {
    by_share(records).or_else(|| by_average(records))
}

/// The least and the most of a figure, with the names.
fn extremes<'a>(figures: impl Iterator<Item = (&'a str, f64)>) -> Option<[(&'a str, f64); 2]> {
    let figures: Vec<(&str, f64)> = figures.filter(|(_, figure)| figure.is_finite()).collect();
    let least = figures.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let most = figures.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some([*least, *most])
}

fn by_share(records: &[(&str, &Benchmark)]) -> Option<String> {
    let shares = records
        .iter()
        .filter_map(|(name, record)| Some((*name, record.run.as_ref()?.load?.other_cpu_share?)));
    let [(quiet, least), (busy, most)] = extremes(shares)?;
    (most - least > SHARE).then(|| {
        format!(
            "measured under different load: other programs took {:.0} % of the processors' time while {quiet} was measured, \
             {:.0} % while {busy} was: their times do not compare",
            least * 100.0,
            most * 100.0
        )
    })
}

fn by_average(records: &[(&str, &Benchmark)]) -> Option<String> {
    let averages = records.iter().filter_map(|(name, record)| {
        let run = record.run.as_ref()?;
        let load = run.load.filter(|load| load.other_cpu_share.is_none())?;
        let mean = (load.load_average_before? + load.load_average_after?) / 2.0;
        Some((*name, mean / run.cpu_threads?.max(1) as f64))
    });
    let [(quiet, least), (busy, most)] = extremes(averages)?;
    (most - least > AVERAGE).then(|| {
        format!(
            "measured under different load: {least:.1} programs a thread wanted a processor while {quiet} was measured, \
             {most:.1} while {busy} was: their times do not compare"
        )
    })
}
