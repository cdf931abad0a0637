import type { List, ListParams } from "../shared/list.js";
import type { CreateOptions, RequestOptions } from "../shared/options.js";
import { slug } from "../path.js";
import { Resource } from "./resource.js";
import type { Principal } from "./whoami.js";

/** An agent project. */
export interface Project {
  id: number;
  /** `[a-z0-9-]{1,63}`, unique in its organization. */
  slug: string;
  name: string;
  /** Version of the active release; `null` before the first. */
  current_version: number | null;
  /** `model_id` and `endpoint_url` override the organization's values; `null` inherits them. */
  model_id: string | null;
  endpoint_url: string | null;
  created_at: string;
}

/** Changes to a project. Absent fields keep their value, `null` clears it. */
export interface ProjectUpdateParams {
  name?: string | undefined;
  model_id?: string | null | undefined;
  endpoint_url?: string | null | undefined;
}

/** The organization's agent projects. */
export class Projects extends Resource {
  /**
   * Lists projects, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: ListParams = {}, options?: RequestOptions): List<Project> {
    return this.listOf("agent_projects", () => "/v1/agent_projects", params, [], options);
  }

  /**
   * Creates a project. Scope `write`.
   *
   * @throws {KartaConflictError} `slug_taken`; {KartaValidationError}; {KartaForbiddenError}
   * without the scope.
   */
  async create(params: { slug: string; name: string }, options?: CreateOptions): Promise<{ agent_project: Project }> {
    return this.transport.create("/v1/agent_projects", params, options);
  }

  /**
   * Returns a project. Scope `read`.
   *
   * @throws {KartaNotFoundError} if the organization has no such project; {KartaForbiddenError}
   * without the scope.
   */
  async get(projectSlug: string, options?: RequestOptions): Promise<{ agent_project: Project }> {
    return this.transport.get(`/v1/agent_projects/${slug(projectSlug)}`, {}, options);
  }

  /**
   * Changes a project. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaValidationError}; {KartaForbiddenError} without the scope.
   */
  async update(
    projectSlug: string,
    params: ProjectUpdateParams,
    options?: RequestOptions,
  ): Promise<{ agent_project: Project }> {
    return this.transport.patch(`/v1/agent_projects/${slug(projectSlug)}`, params, options);
  }

  /**
   * Returns the principal of the client's credential within a project. Any API key, or a session
   * token of this project.
   *
   * @throws {KartaForbiddenError} for a session token of another project; {KartaNotFoundError} if
   * the key's organization has no such project.
   */
  async whoami(projectSlug: string, options?: RequestOptions): Promise<Principal> {
    return this.transport.get(`/v1/projects/${slug(projectSlug)}/whoami`, {}, options);
  }
}
