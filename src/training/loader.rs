//! The data loader: decodes and resizes the pages of the next batches on other threads.

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

/// Number of prefetched batches.
const PREFETCH: usize = 2;

/// Loads the pages of batches.
pub(super) struct PageLoader<'a> {
    images: &'a ImageProcessor,
    pool: rayon::ThreadPool,
    device: Device,
}

/// A batch whose pages are loaded.
struct LoadedBatch {
    samples: Vec<usize>,
    /// 8-bit patches of its pages, each page once; pinned for a GPU.
    levels: Tensor,
}

/// Prefetched batches.
pub(super) struct Batches<'a> {
    loader: &'a PageLoader<'a>,
    receiver: Receiver<Result<LoadedBatch>>,
    waited: Duration,
}

impl<'a> PageLoader<'a> {
    /// Starts the threads: one per core for a GPU, a single one beside the threads that compute on the CPU.
    pub(super) fn new(images: &'a ImageProcessor, device: Device) -> Result<Self> {
        let threads = match device {
            Device::Cpu => 1,
            _ => thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            // Pages are loaded in parallel: libtorch must not parallelize within a page.
            .start_handler(|_| tch::set_num_threads(1))
            .build()
            .map_err(|error| Error::System {
                what: "cannot start the page-loading threads",
                source: std::io::Error::other(error),
            })?;
        Ok(Self { images, pool, device })
    }

    /// Runs `work`, which takes the batches in order while the next ones are loaded; it need not take all of them.
    ///
    /// A batch is given by the numbers of its `samples`.
    pub(super) fn prefetch<R>(
        &self,
        samples: &Samples,
        batches: impl Iterator<Item = Vec<usize>> + Send,
        work: impl FnOnce(&mut Batches<'_>) -> Result<R>,
    ) -> Result<R> {
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(PREFETCH);
            scope.spawn(move || self.load_all(samples, batches, &sender));
            work(&mut Batches {
                loader: self,
                receiver,
                waited: Duration::ZERO,
            })
        })
    }

    /// Loads batches until there are no more or the receiver is dropped.
    fn load_all(
        &self,
        samples: &Samples,
        batches: impl Iterator<Item = Vec<usize>>,
        sender: &SyncSender<Result<LoadedBatch>>,
    ) {
        for batch in batches {
            let loaded = self.load(samples, batch);
            if sender.send(loaded).is_err() {
                return;
            }
        }
    }

    fn load(&self, samples: &Samples, batch: Vec<usize>) -> Result<LoadedBatch> {
        let page = |group: &[usize]| self.page(&samples.samples[group[0]]);
        let groups = samples.groups(&batch);
        let pages: Vec<Tensor> = self
            .pool
            .install(|| groups.into_par_iter().map(page).collect::<Result<_>>())?;
        Ok(LoadedBatch {
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
            let reason = "the page changed during training".to_owned();
            return Err(Error::invalid_file(&sample.image, reason));
        }
        Ok(patches.levels)
    }
}

impl Batches<'_> {
    /// The next batch: the numbers of its samples, and the patches of their pages, f32 on the device.
    pub(super) fn next(&mut self) -> Result<(Vec<usize>, Tensor)> {
        let start = Instant::now();
        let loaded = self
            .receiver
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("the page-loading threads have ended".to_owned())))?;
        self.waited += start.elapsed();
        let loader = self.loader;
        let levels = loaded
            .levels
            .f_to_device_(loader.device, loaded.levels.kind(), true, false)?;
        Ok((loaded.samples, loader.images.normalise(&levels)?))
    }

    /// Time spent waiting for batches since the last call.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}
