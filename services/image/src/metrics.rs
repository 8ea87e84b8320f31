//! Images and their bytes, beside the metrics of calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_server::metrics::{Unit, gauges};

use crate::App;

/// Adds them to what `/metrics` shows.
pub fn register(app: &Arc<App>) {
    let counted = Arc::downgrade(app);
    gauges(
        "berth_images",
        "Images by whether they are cached",
        None,
        move || {
            let Some(app) = counted.upgrade() else {
                return Vec::new();
            };
            let mut counts = BTreeMap::from([("false", 0), ("true", 0)]);
            for image in app.catalogue().images_after(None) {
                *counts
                    .entry(if image.cached { "true" } else { "false" })
                    .or_default() += 1;
            }
            counts
                .into_iter()
                .map(|(cached, count)| (vec![("cached", cached.to_owned())], count))
                .collect()
        },
    );
    let weighed = Arc::downgrade(app);
    gauges(
        "berth_image_store",
        "Bytes of all images; what two share counts once",
        Some(Unit::Bytes),
        move || {
            let Some(app) = weighed.upgrade() else {
                return Vec::new();
            };
            let catalogue = app.catalogue();
            let blobs: BTreeMap<String, u64> = catalogue
                .images_after(None)
                .flat_map(|image| &image.blobs)
                .map(|blob| (blob.digest.to_string(), blob.size))
                .collect();
            let bytes = blobs.values().sum::<u64>();
            vec![(Vec::new(), i64::try_from(bytes).unwrap_or(i64::MAX))]
        },
    );
}
