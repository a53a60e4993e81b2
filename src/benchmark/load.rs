//! Compares the machine load of benchmarks that are shown side by side.

use crate::records::Benchmark;

/// Maximum difference of other programs' CPU share without a note.
const MAX_SHARE_DIFFERENCE: f64 = 0.1;
/// The same for load averages per CPU thread, if the shares are unknown.
const MAX_AVERAGE_DIFFERENCE: f64 = 0.25;

/// A note if `records` (with their names) were measured under different load. Records without load figures are ignored.
pub fn load_note(records: &[(&str, &Benchmark)]) -> Option<String> {
    by_share(records).or_else(|| by_average(records))
}

/// Minimum and maximum of a figure, with their names.
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
    (most - least > MAX_SHARE_DIFFERENCE).then(|| {
        format!(
            "measured under different load: other programs used {:.0} % of the CPU while {quiet} was measured, {:.0} % while \
             {busy} was; their timings are not comparable",
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
    (most - least > MAX_AVERAGE_DIFFERENCE).then(|| {
        format!(
            "measured under different load: load average per thread {least:.1} while {quiet} was measured, {most:.1} while \
             {busy} was; their timings are not comparable"
        )
    })
}
