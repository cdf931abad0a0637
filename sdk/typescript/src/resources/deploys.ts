import type { CreateOptions } from "../options.js";
import { slug } from "../path.js";
import type { Release } from "./releases.js";
import { Resource } from "./resource.js";

/** What to deploy. */
export interface DeployParams {
  /** 7 to 64 hexadecimal digits. */
  commit_sha: string;
  /** Public https, without credentials, query or fragment. */
  artifact_url?: string | null | undefined;
  /** `true` unless given: the release takes the place of the active one. */
  activate?: boolean | null | undefined;
}

/** Making releases. */
export class Deploys extends Resource {
  /**
   * Makes a project's next release. Scope `write`.
   *
   * @throws {KartaNotFoundError} when the organization has no such project; {KartaValidationError}; {KartaForbiddenError} without the scope.
   */
  async create(projectSlug: string, params: DeployParams, options?: CreateOptions): Promise<{ release: Release }> {
    return this.transport.create(`/v1/agent_projects/${slug(projectSlug)}/deploys`, params, options);
  }
}
