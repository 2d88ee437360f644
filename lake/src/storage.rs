//! The warehouse: one object store for Parquet, Iceberg metadata and DataFusion, with one set of credentials and retries.
//!
//! `FileIO (iceberg crate), Parquet writer, DataFusion -> Storage -> local directory or S3`

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, StorageConfig, StorageFactory,
};
use lakeward_runtime::config::WarehouseConfig;
use lakeward_runtime::{Error, Result};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use url::Url;

use crate::errors;
use crate::local::DurableLocal;

/// S3 refuses parts under 5 MiB; a few parts in flight fill a connection without holding much memory.
const PART_SIZE: usize = 8 << 20;
const PARTS_IN_FLIGHT: usize = 4;

/// The warehouse's object store. Cheap to clone. A *location* is a full URL as Iceberg writes it, `file:///…` or
/// `s3://bucket/…`; a *path* is a location within the store.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    /// `file:///` or `s3://bucket/`.
    url: Url,
    /// What every location starts with: `file://` or `s3://bucket`.
    root: String,
    warehouse: String,
    file_io: FileIO,
}

impl Storage {
    /// Makes the store; nothing is read or written yet. Wrong URLs are `Action::Configuration`.
    pub fn open(config: &WarehouseConfig) -> Result<Self> {
        let warehouse = config.url.trim_end_matches('/').to_owned();
        let (store, root): (Arc<dyn ObjectStore>, String) = if let Some(path) = warehouse.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(Error::configuration("[warehouse] url: a local directory is written file:///path")
                    .with("url", &config.url));
            }
            (Arc::new(DurableLocal::new()), "file://".into())
        } else if let Some(rest) = warehouse.strip_prefix("s3://") {
            let bucket = rest.split('/').next().unwrap_or_default();
            if bucket.is_empty() {
                return Err(Error::configuration("[warehouse] url: names no bucket").with("url", &config.url));
            }
            (Arc::new(s3(config, bucket)?), format!("s3://{bucket}"))
        } else {
            return Err(
                Error::configuration("[warehouse] url: must begin with file:/// or s3://").with("url", &config.url)
            );
        };
        let url = Url::parse(&format!("{root}/"))
            .map_err(|e| Error::configuration("[warehouse] url: is no URL").with("url", &config.url).source(e))?;
        let bridge = Bridge { store: store.clone(), root: root.clone() };
        let file_io = FileIOBuilder::new(Arc::new(BridgeFactory { bridge: Some(bridge) })).build();
        Ok(Self { inner: Arc::new(Inner { store, url, root, warehouse, file_io }) })
    }

    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        self.inner.store.clone()
    }

    /// Root of the store, for DataFusion's registration: `file:///` or `s3://bucket`.
    pub fn url(&self) -> &Url {
        &self.inner.url
    }

    /// `file:///…` or `s3://bucket/prefix`, no slash at the end.
    pub fn warehouse_location(&self) -> &str {
        &self.inner.warehouse
    }

    /// The path of a location in [`Self::object_store`]. A location outside of the store is `Action::Human`: a table names it.
    pub fn path(&self, location: &str) -> Result<Path> {
        path(&self.inner.root, location)
    }

    pub(crate) fn file_io(&self) -> &FileIO {
        &self.inner.file_io
    }

    /// A streaming upload in parts, several at a time.
    pub(crate) fn writer(&self, location: &str) -> Result<BufWriter> {
        Ok(buffered(self.inner.store.clone(), self.path(location)?))
    }

    /// Writes an object whole; it is durable on return.
    pub async fn put(&self, location: &str, bytes: Bytes) -> Result<()> {
        let path = self.path(location)?;
        self.inner
            .store
            .put(&path, PutPayload::from(bytes))
            .await
            .map_err(|e| errors::store(e, "writing a file", location))?;
        Ok(())
    }

    /// Reads an object whole; a missing one is an error.
    pub async fn get(&self, location: &str) -> Result<Bytes> {
        let path = self.path(location)?;
        let failed = |e| errors::store(e, "reading a file", location);
        self.inner.store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    /// A missing object is no error.
    pub async fn delete(&self, location: &str) -> Result<()> {
        match self.inner.store.delete(&self.path(location)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(errors::store(error, "deleting a file", location)),
        }
    }

    /// Deletes what it can; what stays is an orphan for maintenance to find, so a failure is only logged.
    pub(crate) async fn delete_quietly(&self, locations: &[String]) {
        for location in locations {
            if let Err(error) = self.delete(location).await {
                tracing::debug!(error = %error, "leaving an orphan file");
            }
        }
    }

    /// Locations under a prefix (a folder), any order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let root = &self.inner.root;
        self.inner
            .store
            .list(Some(&path))
            .map_ok(|meta| format!("{root}/{}", meta.location))
            .try_collect()
            .await
            .map_err(|e| errors::store(e, "listing files", prefix))
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.inner.warehouse)
    }
}

fn s3(config: &WarehouseConfig, bucket: &str) -> Result<object_store::aws::AmazonS3> {
    // Without keys of its own the configuration means the usual environment: AWS_*, web identity, instance metadata.
    let mut builder = match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => {
            AmazonS3Builder::new().with_access_key_id(id.expose()).with_secret_access_key(secret.expose())
        }
        (None, None) => AmazonS3Builder::from_env(),
        _ => {
            return Err(Error::configuration(
                "[warehouse]: access_key_id and secret_access_key are given both or not at all",
            ));
        }
    };
    builder = builder.with_bucket_name(bucket);
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &config.endpoint {
        // Servers other than AWS are addressed by path; they have no wildcard DNS.
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_allow_http(endpoint.starts_with("http://"))
            .with_virtual_hosted_style_request(false);
    }
    // The stages retry for ever, and say so; in here only what a moment cures.
    let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
    let client = ClientOptions::new()
        .with_allow_http(config.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")))
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(60));
    builder
        .with_retry(retry)
        .with_client_options(client)
        .build()
        .map_err(|e| Error::configuration("[warehouse]: the S3 client cannot be made").source(e))
}

fn path(root: &str, location: &str) -> Result<Path> {
    let outside = || {
        Error::human("a location is not in the configured warehouse's store")
            .with("location", location)
            .with("store", root)
    };
    let rest = location.strip_prefix(root).ok_or_else(outside)?;
    let rest = rest.strip_prefix('/').ok_or_else(outside)?;
    Path::parse(rest).map_err(|e| outside().source(e))
}

fn buffered(store: Arc<dyn ObjectStore>, path: Path) -> BufWriter {
    BufWriter::with_capacity(store, path, PART_SIZE).with_max_concurrency(PARTS_IN_FLIGHT)
}

/// iceberg's `Storage` over the same store.
#[derive(Debug, Clone)]
struct Bridge {
    store: Arc<dyn ObjectStore>,
    root: String,
}

/// The iceberg crate's traits ask for serde; nothing there serializes a `FileIO`, and a store cannot be. A factory that was
/// deserialized all the same refuses to build.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BridgeFactory {
    #[serde(skip)]
    bridge: Option<Bridge>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct BridgeStorage {
    #[serde(skip)]
    bridge: Option<Bridge>,
}

#[typetag::serde(name = "LakewardStorageFactory")]
impl StorageFactory for BridgeFactory {
    fn build(&self, _config: &StorageConfig) -> iceberg::Result<Arc<dyn iceberg::io::Storage>> {
        Ok(Arc::new(BridgeStorage { bridge: self.bridge.clone() }))
    }
}

/// Ours as theirs; [`errors`] finds it again.
fn theirs(error: Error) -> iceberg::Error {
    let retryable = error.is_retryable();
    iceberg::Error::new(iceberg::ErrorKind::Unexpected, "warehouse").with_source(error).with_retryable(retryable)
}

impl BridgeStorage {
    fn at(&self, location: &str) -> iceberg::Result<(&Arc<dyn ObjectStore>, Path)> {
        let bridge = self.bridge.as_ref().ok_or_else(|| theirs(Error::bug("a storage was deserialized")))?;
        Ok((&bridge.store, path(&bridge.root, location).map_err(theirs)?))
    }
}

#[async_trait]
#[typetag::serde(name = "LakewardStorage")]
impl iceberg::io::Storage for BridgeStorage {
    async fn exists(&self, location: &str) -> iceberg::Result<bool> {
        let (store, path) = self.at(location)?;
        match store.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(theirs(errors::store(error, "looking for a file", location))),
        }
    }

    async fn metadata(&self, location: &str) -> iceberg::Result<FileMetadata> {
        let (store, path) = self.at(location)?;
        let meta = store.head(&path).await.map_err(|e| theirs(errors::store(e, "looking at a file", location)))?;
        Ok(FileMetadata { size: meta.size })
    }

    async fn read(&self, location: &str) -> iceberg::Result<Bytes> {
        let (store, path) = self.at(location)?;
        let failed = |e| theirs(errors::store(e, "reading a file", location));
        store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    async fn reader(&self, location: &str) -> iceberg::Result<Box<dyn FileRead>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Reader { store: store.clone(), path, location: location.to_owned() }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> iceberg::Result<()> {
        let (store, path) = self.at(location)?;
        store
            .put(&path, PutPayload::from(bytes))
            .await
            .map_err(|e| theirs(errors::store(e, "writing a file", location)))?;
        Ok(())
    }

    async fn writer(&self, location: &str) -> iceberg::Result<Box<dyn FileWrite>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Writer { upload: buffered(store.clone(), path), location: location.to_owned() }))
    }

    async fn delete(&self, location: &str) -> iceberg::Result<()> {
        let (store, path) = self.at(location)?;
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(theirs(errors::store(error, "deleting a file", location))),
        }
    }

    async fn delete_prefix(&self, location: &str) -> iceberg::Result<()> {
        let (store, path) = self.at(location)?;
        let paths = store.list(Some(&path)).map_ok(|meta| meta.location).boxed();
        store
            .delete_stream(paths)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(|e| theirs(errors::store(e, "deleting files", location)))
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> iceberg::Result<()> {
        while let Some(location) = locations.next().await {
            self.delete(&location).await?;
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> iceberg::Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_owned()))
    }

    fn new_output(&self, location: &str) -> iceberg::Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_owned()))
    }
}

struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    location: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> iceberg::Result<Bytes> {
        let read = self.store.get_range(&self.path, range).await;
        read.map_err(|e| theirs(errors::store(e, "reading a file", &self.location)))
    }
}

struct Writer {
    upload: BufWriter,
    location: String,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        let put = self.upload.put(bytes).await;
        put.map_err(|e| theirs(errors::store(e, "writing a file", &self.location)))
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        let closed = self.upload.shutdown().await;
        closed.map_err(|e| theirs(errors::upload(e, "writing a file", &self.location)))
    }
}
