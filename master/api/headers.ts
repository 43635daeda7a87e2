/**
 * What browsers are told with every answer. The API's own answers may not be run, framed or kept by anything; the page may
 * load its own files and call its own API and nothing else, no inline script or style among them.
 */
const nothing = "default-src 'none'; frame-ancestors 'none'";
export const pagePolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

/** @param isTls browsers keep to HTTPS from then on, for half a year */
export function securityHeaders(url: string, isTls: boolean): Record<string, string> {
  const isPage = url === '/' || url.startsWith('/?') || url.startsWith('/page/');
  return {
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'x-frame-options': 'DENY',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'permissions-policy': 'camera=(), geolocation=(), microphone=(), payment=(), usb=()',
    ...(isTls ? { 'strict-transport-security': 'max-age=15552000' } : {}),
    // The page of /docs sets its own.
    ...(url.startsWith('/docs') ? {} : { 'content-security-policy': isPage ? pagePolicy : nothing }),
    ...(url.startsWith('/api/') ? { 'cache-control': 'no-store' } : {}),
  };
}
