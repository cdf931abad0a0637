import type { List, ListParams } from "../shared/list.js";
import type { RequestOptions } from "../shared/options.js";
import { id, slug } from "../path.js";
import { Resource } from "./resource.js";

/** `superseded`: active before, then replaced. */
export type ReleaseStatus = "pending" | "building" | "ready" | "active" | "superseded" | "failed";

/** One release of a project. */
export interface Release {
  id: number;
  project_id: number;
  /** 1, 2, … in its project, without gaps. */
  version: number;
  commit_sha: string;
  artifact_url: string | null;
  status: ReleaseStatus;
  build_kind: "image" | "template" | null;
  image_ref: string | null;
  created_at: string;
  /** Time when it last became active. */
  activated_at: string | null;
}

/** One line of a build log. */
export interface LogLine {
  line: number;
  text: string;
}

/** A project's releases. */
export class Releases extends Resource {
  /**
   * Lists releases, newest first. Scope `read`.
   *
   * @throws {KartaNotFoundError} if the organization has no such project; {KartaForbiddenError}
   * without the scope.
   */
  list(projectSlug: string, params: ListParams = {}, options?: RequestOptions): List<Release> {
    return this.listOf("releases", () => `/v1/agent_projects/${slug(projectSlug)}/releases`, params, [], options);
  }

  /**
   * Lists the lines of a release's build log in order. Scope `read`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  logs(projectSlug: string, version: number, params: ListParams = {}, options?: RequestOptions): List<LogLine> {
    const path = () => `/v1/agent_projects/${slug(projectSlug)}/releases/${id(version, "version")}/logs`;
    return this.listOf("logs", path, params, [], options);
  }

  /**
   * Activates another release, earlier or later. Scope `admin`.
   *
   * @throws {KartaConflictError} `release_not_ready`; {KartaNotFoundError}; {KartaForbiddenError}
   * without the scope.
   */
  async rollback(projectSlug: string, version: number, options?: RequestOptions): Promise<{ release: Release }> {
    return this.transport.post(`/v1/agent_projects/${slug(projectSlug)}/rollback`, { version }, options);
  }
}
