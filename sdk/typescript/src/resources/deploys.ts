import { fieldsOf } from "../json.js";
import { slug } from "../path.js";
import type { CreateOptions } from "../shared/options.js";
import type { Release } from "./releases.js";
import { Resource } from "./resource.js";

/** A release to create. */
export interface DeployParams {
  /** 7 to 64 hexadecimal digits. */
  commit_sha: string;
  /** Public https URL without credentials, query or fragment. */
  artifact_url?: string | null | undefined;
  /** Whether the release replaces the active one. Default: `true`. `undefined` is rejected. */
  activate?: boolean | null;
}

/** Deploys of a project. */
export class Deploys extends Resource {
  /**
   * Creates a project's next release. Scope `write`.
   *
   * @throws {KartaNotFoundError} if the organization has no such project; {KartaValidationError};
   * {KartaForbiddenError} without the scope.
   */
  async create(projectSlug: string, params: DeployParams, options?: CreateOptions): Promise<{ release: Release }> {
    // A misspelt flag must not activate the release.
    const fields = fieldsOf(params, { kept: ["activate"] });
    return this.transport.create(`/v1/agent_projects/${slug(projectSlug)}/deploys`, fields, options);
  }
}
