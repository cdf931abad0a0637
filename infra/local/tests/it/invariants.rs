//! Invariants of the tables that hold at any time, after any fault or race: related items exist
//! together or not at all.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{TestServer, plain};

/// The items of the main and the credentials table, read directly from the store.
pub(crate) struct Tables {
    main: Vec<Value>,
    credentials: Vec<Value>,
}

impl Tables {
    pub(crate) async fn new(server: &TestServer) -> Self {
        Self { main: items(server, "karta").await, credentials: items(server, "karta-credentials").await }
    }

    /// Returns the items of the main table whose partition key starts with `partition`.
    pub(crate) fn under<'a>(&'a self, partition: &'a str) -> impl Iterator<Item = &'a Value> {
        self.main.iter().filter(move |item| item["pk"].as_str().unwrap().starts_with(partition))
    }

    pub(crate) fn key_ids(&self) -> BTreeSet<u64> {
        ids(self.under("KEY#"), "id")
    }

    /// Returns the number of audit events of `action` on `resource`.
    pub(crate) fn audited(&self, action: &str, resource: u64) -> usize {
        let events = self.under("AUD#").filter(|event| event["action"] == action);
        events.filter(|event| event["resource"]["id"] == resource).count()
    }

    /// Returns how often a release became active after its deploy. An activation by the deploy
    /// itself has the deploy's request id.
    fn activations(&self, release: u64) -> usize {
        let of = |action: &'static str| {
            self.under("AUD#").filter(move |event| event["action"] == action && event["resource"]["id"] == release)
        };
        let deploy = of("release.created").next().map(|event| &event["request_id"]);
        let activated = of("release.activated").filter(|event| Some(&event["request_id"]) != deploy).count();
        activated + self.audited("release.rolled_back", release)
    }

    /// Returns the sort keys of a release's log chunks.
    pub(crate) fn chunks(&self, release: &Value) -> Vec<String> {
        let organization = release["pk"].as_str().unwrap().split('#').nth(1).unwrap();
        let log = format!("RLG#{organization}#{}", release["id"]);
        let own = self.main.iter().filter(|item| item["pk"] == log);
        own.map(|chunk| chunk["sk"].as_str().unwrap().to_owned()).collect()
    }

    /// Asserts that every release has its related items, that the versions of a project have no
    /// gaps, and that a project has an active release once any was activated.
    fn assert_releases_consistent(&self) {
        let releases = || self.under("REL#");
        assert_eq!(ids(self.under("ID#release#"), "id"), ids(releases(), "id"), "every release has its id claim");
        for claim in self.under("ID#release#") {
            let partition = format!("REL#{}#{}", claim["organization_id"], claim["project_id"]);
            let at = |release: &&Value| release["pk"] == partition && release["version"] == claim["version"];
            assert_eq!(releases().find(at).map(|release| &release["id"]), Some(&claim["id"]), "the release of {claim}");
        }
        for release in releases() {
            let id = release["id"].as_u64().unwrap();
            assert_eq!(self.audited("release.created", id), 1, "the creation of {release}");
            let changes = self.audited("release.updated", id) + self.activations(id);
            assert_eq!(release["revision"], 1 + changes, "every change of {release} is audited once");
            assert_eq!(self.chunks(release), named_chunks(release), "the log chunks of {release}");
        }
        for project in self.under("PRJ#").filter(|item| !item["sk"].as_str().unwrap().starts_with("SLUG#")) {
            let own = || releases().filter(|release| release["project_id"] == project["id"]);
            let versions: BTreeSet<_> = own().map(|release| release["version"].as_u64().unwrap()).collect();
            let latest = project["latest_version"].as_u64().unwrap_or(0);
            assert!(versions.iter().copied().eq(1..=latest), "{versions:?} of {project}");
            assert_eq!(own().count(), versions.len(), "no duplicate versions");
            let activated = own().filter(|release| !release["activated_at"].is_null()).count();
            let current = own().find(|release| release["version"] == project["current_version"]);
            assert_eq!(current.is_some(), activated > 0, "a release is active once any was activated: {project}");
            assert!(current.is_none_or(|current| current["build"] == "ready" && !current["activated_at"].is_null()));
            let id = |release: &Value| release["id"].as_u64().unwrap();
            let activations: usize = own().map(|release| self.activations(id(release))).sum();
            let changes = self.audited("agent_project.updated", id(project)) + own().count() + activations;
            assert_eq!(project["version"], 1 + changes, "every change of {project} is audited once");
        }
    }

    /// Asserts that every resource has its related items, and that no related item is left without
    /// its resource.
    pub(crate) fn assert_consistent(&self) {
        let keys = self.key_ids();
        assert_eq!(ids(self.under("ID#api_key#"), "id"), keys, "every key has its id claim");
        assert_eq!(ids(self.credentials.iter(), "api_key_id"), keys, "every key has its credential");
        assert_eq!(self.credentials.len(), keys.len(), "every key has one credential");
        for key in self.under("KEY#") {
            let id = key["id"].as_u64().unwrap();
            assert_eq!(self.audited("api_key.created", id), 1, "the creation of {key}");
            let revoked = usize::from(!key["revoked_at"].is_null());
            assert_eq!(self.audited("api_key.revoked", id), revoked, "the revocation of {key}");
            let rotated = usize::from(!key["replaced_by"].is_null());
            assert_eq!(self.audited("api_key.rotated", id), rotated, "the rotation of {key}");
            let successor = key["replaced_by"].as_u64();
            assert!(successor.is_none_or(|successor| keys.contains(&successor)), "the successor of {key}");
            let changes = self.audited("api_key.updated", id) + rotated + revoked;
            assert_eq!(key["version"], 1 + changes, "every change of {key} is audited once");
            let partition = format!("KP#{}", key["prefix"].as_str().unwrap());
            let credential = self.credentials.iter().find(|credential| credential["api_key_id"] == id).unwrap();
            assert_eq!(credential["pk"], partition);
            assert_eq!(format!("KEY#{}", credential["organization_id"]), key["pk"].as_str().unwrap());
        }
        let is_claim = |item: &&Value| item["sk"].as_str().unwrap().starts_with("SLUG#");
        let projects = ids(self.under("PRJ#").filter(|item| !is_claim(item)), "id");
        assert_eq!(
            ids(self.under("PRJ#").filter(is_claim), "project_id"),
            projects,
            "every project has its slug claim"
        );
        assert_eq!(ids(self.under("ID#agent_project#"), "id"), projects, "every project has its id claim");
        assert!(projects.iter().all(|id| self.audited("agent_project.created", *id) == 1));
        let model_keys = self.assert_model_keys_consistent();
        let webhook_endpoints = self.assert_webhook_endpoints_consistent();
        let organizations = ids(self.under("ORG#").filter(|item| item["sk"] == "META"), "id");
        for record in self.under("IDEM#").chain(self.under("IDS#")) {
            let resource = record["resource_id"].as_u64().unwrap();
            let releases = ids(self.under("REL#"), "id");
            let known = [&keys, &projects, &organizations, &releases, &model_keys, &webhook_endpoints];
            let known = known.iter().any(|ids| ids.contains(&resource));
            assert!(known, "a stored response refers to the missing resource {resource}");
        }
        self.assert_releases_consistent();
        assert_eq!(self.customers_claimed(), self.customers_found(), "every Stripe customer is claimed once");
        assert_eq!(self.admins_counted(), self.admins_found(), "the stored count of usable admin keys is correct");
    }

    /// Asserts that exactly the model keys in use have a sealed key. Returns all ids.
    fn assert_model_keys_consistent(&self) -> BTreeSet<u64> {
        let is_pointer = |item: &&Value| item["sk"].as_str().unwrap().starts_with("ACTIVE#");
        let items = || self.under("MK#").filter(|item| !is_pointer(item));
        let model_keys = ids(items(), "id");
        assert_eq!(ids(self.under("ID#model_key#"), "id"), model_keys, "every model key has its id claim");
        for key in items() {
            let id = key["id"].as_u64().unwrap();
            let revoked = usize::from(!key["revoked_at"].is_null());
            assert_eq!(self.audited("model_key.created", id), 1, "the creation of {key}");
            assert_eq!(self.audited("model_key.revoked", id), revoked, "the revocation of {key}");
            assert_eq!(key["version"], 1 + revoked, "{key}");
        }
        let identity = |prefix: &str, item: &Value, provider: &Value, id: u64| {
            format!("{}/{provider}/{id}", item["pk"].as_str().unwrap().strip_prefix(prefix).unwrap())
        };
        let in_use: BTreeSet<_> = items()
            .filter(|key| key["revoked_at"].is_null())
            .map(|key| identity("MK#", key, &key["provider"], key["id"].as_u64().unwrap()))
            .collect();
        let sealed: BTreeSet<_> = self
            .under("MKS#")
            .map(|key| identity("MKS#", key, &key["provider"], key["sk"].as_str().unwrap().parse().unwrap()))
            .collect();
        assert_eq!(sealed, in_use, "exactly the keys in use are sealed");
        let provider = |pointer: &Value| json!(pointer["sk"].as_str().unwrap().replace("ACTIVE#", ""));
        let pointed: BTreeSet<_> = self
            .under("MK#")
            .filter(is_pointer)
            .map(|pointer| identity("MK#", pointer, &provider(pointer), pointer["model_key_id"].as_u64().unwrap()))
            .collect();
        assert_eq!(pointed, in_use, "exactly the keys in use are active");
        model_keys
    }

    /// Asserts that every webhook endpoint has its secrets and that the stored counts are correct.
    /// Returns all ids, including those of deleted endpoints.
    fn assert_webhook_endpoints_consistent(&self) -> BTreeSet<u64> {
        let is_count = |item: &&Value| item["sk"] == "COUNT";
        let endpoints = || self.under("WH#").filter(|item| !is_count(item));
        let claimed = ids(self.under("ID#webhook_endpoint#"), "id");
        let existing = ids(endpoints(), "id");
        for id in &claimed {
            assert_eq!(self.audited("webhook_endpoint.created", *id), 1, "the creation of {id}");
            let deleted = usize::from(!existing.contains(id));
            assert_eq!(self.audited("webhook_endpoint.deleted", *id), deleted, "the deletion of {id}");
        }
        assert!(existing.is_subset(&claimed), "every endpoint has its id claim");
        for endpoint in endpoints() {
            let id = endpoint["id"].as_u64().unwrap();
            let changes: usize = ["updated", "disabled", "secret_rotated"]
                .map(|change| self.audited(&format!("webhook_endpoint.{change}"), id))
                .iter()
                .sum();
            assert_eq!(endpoint["version"], 1 + changes, "every change of {endpoint} is audited once");
        }
        let identity = |prefix: &str, item: &Value| {
            format!("{}/{}", item["pk"].as_str().unwrap().strip_prefix(prefix).unwrap(), item["sk"].as_str().unwrap())
        };
        let with_secrets: BTreeSet<_> = self.under("WHS#").map(|item| identity("WHS#", item)).collect();
        assert_eq!(
            with_secrets,
            endpoints().map(|item| identity("WH#", item)).collect(),
            "every endpoint has its secrets"
        );
        for secrets in self.under("WHS#") {
            let id = secrets["sk"].as_str().unwrap().parse().unwrap();
            let rotations = self.audited("webhook_endpoint.secret_rotated", id);
            assert_eq!(secrets["version"], 1 + rotations, "every rotation of {id} is audited once");
        }
        for count in self.under("WH#").filter(is_count) {
            let own = endpoints().filter(|endpoint| endpoint["pk"] == count["pk"]).count();
            assert_eq!(count["endpoints"], own, "the stored count of endpoints is correct");
        }
        claimed
    }

    /// Returns the organization of each Stripe customer according to the claims.
    fn customers_claimed(&self) -> BTreeMap<String, u64> {
        let claim = |item: &Value| {
            (item["pk"].as_str().unwrap().replace("ID#stripe_customer#", ""), item["organization_id"].as_u64().unwrap())
        };
        self.under("ID#stripe_customer#").map(claim).collect()
    }

    /// Returns the organization of each Stripe customer according to the organizations.
    fn customers_found(&self) -> BTreeMap<String, u64> {
        let organizations = self.under("ORG#").filter(|item| item["sk"] == "META");
        let with_customer = organizations.filter_map(|item| Some((item["stripe_customer_id"].as_str()?, &item["id"])));
        with_customer.map(|(customer, id)| (customer.to_owned(), id.as_u64().unwrap())).collect()
    }

    /// Returns the stored number of usable admin keys by organization.
    fn admins_counted(&self) -> BTreeMap<String, u64> {
        self.under("ADM#")
            .map(|item| (item["pk"].as_str().unwrap().replace("ADM#", ""), item["usable"].as_u64().unwrap()))
            .collect()
    }

    /// Returns the actual number of usable admin keys by organization.
    fn admins_found(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for key in self.under("KEY#") {
            let organization = key["pk"].as_str().unwrap().replace("KEY#", "");
            *found.entry(organization).or_default() += u64::from(is_usable_admin(key));
        }
        found
    }
}

/// Returns the sort keys of the chunks that a release lists.
pub(crate) fn named_chunks(release: &Value) -> Vec<String> {
    let generation = release["log"]["generation"].as_str().unwrap_or_default();
    let ends = release["log"]["ends"].as_array().into_iter().flatten();
    ends.map(|end| format!("{generation}#{:016}", end.as_u64().unwrap())).collect()
}

fn is_usable_admin(key: &Value) -> bool {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    key["scopes"].as_array().unwrap().contains(&json!("admin"))
        && ["revoked_at", "expires_at", "replaced_by"].iter().all(|field| key[field].is_null())
        && empty(&key["allowed_cidrs"])
}

fn ids<'a>(items: impl Iterator<Item = &'a Value>, field: &str) -> BTreeSet<u64> {
    items.map(|item| item[field].as_u64().unwrap()).collect()
}

async fn items(server: &TestServer, table: &str) -> Vec<Value> {
    let (mut items, mut scan) = (Vec::new(), json!({ "TableName": table }));
    loop {
        let page = server.dynamodb("Scan", scan.clone()).await;
        items.extend(page["Items"].as_array().unwrap().iter().map(plain));
        if page["LastEvaluatedKey"].is_null() {
            return items;
        }
        scan["ExclusiveStartKey"] = page["LastEvaluatedKey"].clone();
    }
}
