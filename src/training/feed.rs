//! Pages, read and cut while the batch before is computed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tch::{Device, Tensor};

use super::samples::{Sample, Samples};
use crate::fs::{PICTURE_BYTES, read_bounded};
use crate::processing::{DecodeLimits, ImageProcessor, decode};
use crate::torch::pinned;
use crate::{Error, Result};

/// Batches that wait to be taken.
const AHEAD: usize = 2;

/// Reads the pages of batches.
pub(super) struct Feed {
    images: ImageProcessor,
    pool: rayon::ThreadPool,
    device: Device,
}

/// A batch whose pages are ready.
struct Ready {
    samples: Vec<usize>,
    /// 8-bit patches of their pages, each once, one after the other; pinned where they go to a GPU.
    levels: Tensor,
}

/// Batches as they become ready.
pub(super) struct Batches<'a> {
    feed: &'a Feed,
    receiver: Receiver<Result<Ready>>,
    waited: Duration,
}

impl Feed {
    /// Threads that read pages: all cores beside a GPU, one beside the threads that compute on the CPU.
    pub(super) fn new(images: ImageProcessor, device: Device) -> Result<Self> {
        let threads = match device {
            Device::Cpu => 1,
            _ => thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            // Each page is one thread's work: libtorch needs no team for it.
            .start_handler(|_| tch::set_num_threads(1))
            .build()
            .map_err(|error| Error::Device(format!("no threads to read pages with: {error}")))?;
        Ok(Self { images, pool, device })
    }

    /// Lets `work` take the batches, which name `samples` by number, one after the other; it need not take all.
    pub(super) fn serve<R>(
        &self,
        samples: &Samples,
        batches: impl Iterator<Item = Vec<usize>> + Send,
        work: impl FnOnce(&mut Batches<'_>) -> Result<R>,
    ) -> Result<R> {
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            scope.spawn(move || self.read(samples, batches, &sender));
            work(&mut Batches {
                feed: self,
                receiver,
                waited: Duration::ZERO,
            })
        })
    }

    /// Reads until there are no more batches or nobody takes them.
    fn read(
        &self,
        samples: &Samples,
        batches: impl Iterator<Item = Vec<usize>>,
        sender: &SyncSender<Result<Ready>>,
    ) {
        for batch in batches {
            let ready = self.ready(samples, batch);
            if sender.send(ready).is_err() {
                return;
            }
        }
    }

    fn ready(&self, samples: &Samples, batch: Vec<usize>) -> Result<Ready> {
        let page = |group: &[usize]| self.page(&samples.samples[group[0]]);
        let groups = samples.groups(&batch);
        let pages: Vec<Tensor> = self
            .pool
            .install(|| groups.into_par_iter().map(page).collect::<Result<_>>())?;
        Ok(Ready {
            samples: batch,
            levels: pinned(Tensor::f_cat(&pages, 0)?, self.device)?,
        })
    }

    fn page(&self, sample: &Sample) -> Result<Tensor> {
        let bytes =
            read_bounded(&sample.image, PICTURE_BYTES).map_err(|error| Error::io(&sample.image, error))?;
        let patches = self
            .images
            .process_levels(&decode(&bytes, &DecodeLimits::default())?)?;
        if patches.grid != sample.grid {
            let reason = "the page changed while it was trained on".to_owned();
            return Err(Error::record(&sample.image, reason));
        }
        Ok(patches.levels)
    }
}

impl Batches<'_> {
    /// The next batch: its samples, and the patches of their pages, f32 on the device.
    pub(super) fn next(&mut self) -> Result<(Vec<usize>, Tensor)> {
        let start = Instant::now();
        let ready = self.receiver.recv().unwrap_or(Err(Error::Interrupted))?;
        self.waited += start.elapsed();
        let feed = self.feed;
        let levels = ready
            .levels
            .f_to_device_(feed.device, ready.levels.kind(), true, false)?;
        Ok((ready.samples, feed.images.normalise(&levels)?))
    }

    /// Time spent waiting for pages since this was last asked.
    pub(super) fn waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}
