"""Cases of the official layers, computed as the release does, by dense loops, in sizes that its own files do not have."""

import torch


def official(seed, d_model, n_keys, d_key, d_value, m, heads, side, v2=None):
    """A case as the release computes it, by dense loops: the key grid has n_keys * side keys per axis.

    v2: dict of d_pre, n_layers, layer, view (keys per axis of the window), one (single projector), gelu.
    """
    torch.manual_seed(seed)
    rank = cores = 2
    view = v2["view"] if v2 else n_keys
    axis, n_view, n_all = view * side, view**2, (v2["n_layers"] if v2 else 1) * n_keys**2
    blocks = 1 if v2 and v2["one"] else side**2
    offset = v2["layer"] * n_keys**2 if v2 else 0

    def draw(*shape, std=1.0):
        return (std * torch.randn(*shape, dtype=torch.float64)).requires_grad_()

    p = {
        "query_weight": draw((4 if v2 else 2) * d_key, d_model),
        "keys": draw(heads, 2, axis, d_key, rank),
        "values": draw(n_all, d_value),
        "values_proj_weight": draw(d_model, blocks * d_value),
        "tucker_core": torch.rand(cores, heads, rank, rank, dtype=torch.float64).requires_grad_(),
    }
    if v2:
        p |= {"pre_values": draw(n_all, v2["d_pre"]), "pre_values_proj_weight": draw(v2["d_pre"], d_model)}
    gains = {name: torch.rand(d_key, dtype=torch.float64) for name in ("query_norm_weight", "keys_norm_weight")}
    x, shuffle = draw(2, 5, d_model), torch.randperm(axis**2)
    total = p["tucker_core"].sum(0)
    u, t = (side[..., 0] for side in (lambda s: (s[0], s[2].transpose(-1, -2)))(torch.linalg.svd(total.detach())))

    def normed(v, gain):
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    q = normed((x @ p["query_weight"].T)[..., : 2 * d_key].reshape(10, 2, d_key), gains["query_norm_weight"])
    k = normed(p["keys"].transpose(-1, -2), gains["keys_norm_weight"])  # head, axis, key, rank, d_key
    scores, indices, y = [], [], []
    for token, token_x in zip(q, x.reshape(10, -1), strict=True):
        pooled = torch.zeros(blocks, d_value, dtype=torch.float64)
        token_scores, token_indices = [], []
        for head in range(heads):
            row, col = (k[head, side_] @ token[side_] for side_ in (0, 1))  # key, rank
            rows, cols = (row @ u[head]).topk(m).indices, (col @ t[head]).topk(m).indices
            cells = torch.einsum("ar,crs,bs->abc", row[rows], p["tucker_core"][:, head], col[cols]).flatten(0, 1)
            best = cells.sum(-1).topk(m).indices
            index = rows[best // m] * axis + cols[best % m]
            token_scores.append(cells[best])
            token_indices.append(index)
            for cell, score in zip(index.tolist(), cells[best], strict=True):
                shuffled = int(shuffle[cell])
                at = (shuffled % n_view + offset) % n_all
                weight = score
                if v2:
                    hidden = p["pre_values"][at] @ (p["pre_values_proj_weight"] @ token_x)
                    weight = score * (torch.nn.functional.gelu(hidden) if v2["gelu"] else hidden)
                block = torch.zeros(blocks, 1, dtype=torch.float64)
                block[0 if blocks == 1 else shuffled // n_view] = 1
                pooled = pooled + block * (p["values"][at].view(cores, -1) * weight[:, None]).flatten()
        y.append(p["values_proj_weight"] @ pooled.flatten())
        scores.append(torch.cat(token_scores))
        indices.append(torch.cat(token_indices))
    y = torch.stack(y).view(2, 5, d_model)
    grad_y = torch.randn(2, 5, d_model, dtype=torch.float64)
    y.backward(grad_y)
    singular = torch.linalg.svd(total.float() if v2 else total)[1]
    aux = (singular[:, 1:] - 0.15).clamp(min=0).square().mean()
    meta = [d_model, n_keys, d_key, d_value, m, heads, side**2, rank, cores]
    if v2:
        meta = [d_model, axis, d_key, d_value, v2["d_pre"], m, heads, v2["n_layers"], v2["layer"], side]
        meta += [blocks, int(v2["gelu"]), rank, cores, n_all, n_view, offset]
    arrays = p | gains | {"x": x, "y": y, "grad_y": grad_y, "grad_x": x.grad, "tucker_u": u, "tucker_v": t}
    arrays |= {f"grad_{name}": value.grad for name, value in p.items()}
    arrays |= {"top_scores": torch.stack(scores), "top_indices": torch.stack(indices), "aux_loss": aux}
    arrays |= {"shuffle_index": shuffle, "meta": torch.tensor(meta)}
    return {name: value.detach().numpy() for name, value in arrays.items()}


V2 = {"d_pre": 2, "n_layers": 1, "layer": 0, "view": 5, "one": True, "gelu": False}
OTHERS = {
    "three heads, E=9": (11, 20, 7, 6, 8, 5, 3, 3, None),
    "E=16": (12, 16, 5, 4, 6, 3, 1, 4, None),
    "m above n": (13, 16, 4, 6, 4, 4, 2, 1, None),
    "ring, two heads": (
        14,
        24,
        6,
        5,
        8,
        4,
        2,
        1,
        V2 | {"d_pre": 3, "n_layers": 5, "layer": 4, "view": 9},
    ),
    "ring, E=9, one": (15, 16, 5, 4, 4, 3, 1, 3, V2 | {"d_pre": 6, "n_layers": 3, "layer": 1, "view": 7, "gelu": True}),
    "own table, E=4": (
        16,
        16,
        5,
        4,
        4,
        3,
        2,
        2,
        V2 | {"one": False},
    ),
}
