import { ERROR_NAME } from "../package.js";

/**
 * Key of the property that holds an error class's name as text, because minifiers rename classes. The
 * key is the same in every copy of a package, so `instanceof` works between its ESM and its CommonJS
 * copy.
 */
export const NAME = /* @__PURE__ */ Symbol.for(ERROR_NAME);
