import { title } from "./parts.js";
export function usageView(place) { place.append(title("Usage")); }
