//! A local directory that keeps what it acknowledged: object_store's local store, with the `fsync` it does not do.
//!
//! The catalog names files by a durable row; a file that a crash of the machine can empty must not be named there.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// The whole local file system; a write is on disk, under its name, when it returns.
#[derive(Debug)]
pub(crate) struct DurableLocal {
    inner: LocalFileSystem,
    /// Folders whose own names are on disk already.
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

impl DurableLocal {
    pub(crate) fn new() -> Self {
        Self { inner: LocalFileSystem::new(), durable: Arc::default() }
    }

    fn sync(&self, location: &Path) -> Result<Sync> {
        Ok(Sync { file: self.inner.path_to_filesystem(location)?, durable: self.durable.clone() })
    }
}

/// One written file that has to reach the disk.
#[derive(Debug)]
struct Sync {
    file: PathBuf,
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Sync {
    async fn run(self) -> Result<()> {
        let path = self.file.display().to_string();
        let done = tokio::task::spawn_blocking(move || self.blocking()).await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(object_store::Error::Generic { store: "local", source: Box::new(error) }),
            Err(error) => {
                Err(object_store::Error::Generic { store: "local", source: format!("syncing {path}: {error}").into() })
            }
        }
    }

    fn blocking(&self) -> std::io::Result<()> {
        File::open(&self.file)?.sync_all()?;
        // The name is in the folder; a folder made on the way is a name in the one above.
        for folder in self.file.ancestors().skip(1) {
            File::open(folder)?.sync_all()?;
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
            if !durable.insert(folder.to_owned()) {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableLocal({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let result = self.inner.put_opts(location, payload, options).await?;
        self.sync(location)?.run().await?;
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { inner, sync: Some(self.sync(location)?) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.sync(to)?.run().await
    }
}

#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    /// None once completed.
    sync: Option<Sync>,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        if let Some(sync) = self.sync.take() {
            sync.run().await?;
        }
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
